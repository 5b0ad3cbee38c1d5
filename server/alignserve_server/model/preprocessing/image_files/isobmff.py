"""AVIF and HEIC: boxes that describe items; a picture is one item, or a grid of several.

The file keeps its length, since items are found by their offsets. Boxes and items that do not affect the
pixels (tracks, metadata, other kinds of items) are renamed to types that decoders skip.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from alignserve_server.errors import ImageUnreadable
from alignserve_server.model.preprocessing.image_files.orientation import orientation_of
from alignserve_server.model.preprocessing.image_files.picture import (
    CheckSize,
    Picture,
    check_count,
    unreadable,
)

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_ANY_BRANDS = {b"mif1", b"msf1", b"mif2"}
_VIDEO_BRANDS = {b"isom", b"iso2", b"mp41", b"mp42", b"M4V ", b"qt  ", b"avc1"}
_STILL = b"mif1"

_MAX_BOXES = 2048  # within a box; a tiled picture of 100 million pixels has some 500 items
_MAX_EXTENTS = 8192

_BOX = struct.Struct(">I4s")
_FREE, _NO_ITEM = b"free", b"none"
_KEPT_BOXES = {b"ftyp", b"meta", b"mdat", _FREE, b"skip"}
_KEPT_DESCRIPTIONS = {b"hdlr", b"pitm", b"iloc", b"iinf", b"iprp", b"iref", b"idat", _FREE, b"skip"}

_GRID = b"grid"


class _Box(NamedTuple):
    kind: bytes
    name: int  # offset of its type
    body: int
    end: int


class _Item(NamedTuple):
    kind: bytes
    extents: Sequence[tuple[int, int]]  # start and end offsets in the file
    properties: Sequence[_Box]


def format_of(content: bytes) -> str | None:
    """Returns AVIF, HEIC, or that it is a video; None for other files."""
    size, kind = _BOX.unpack_from(content)
    if kind != b"ftyp":
        return None
    end = min(size, len(content), 1024)
    brands = [content[8:12], *(content[start : start + 4] for start in range(16, end - 3, 4))]
    for names, found in ((_AVIF_BRANDS, "AVIF"), (_HEIC_BRANDS, "HEIC"), (_VIDEO_BRANDS, "a video")):
        if brands[0] in names or (brands[0] in _ANY_BRANDS and names.intersection(brands)):
            return found
    return None


def read_avif(content: bytes, check_size: CheckSize) -> Picture:
    """Reads the boxes. The size is that of the primary item before rotation, which Pillow does not apply."""
    patched, primary, items = _read(content, b"av01", b"avif", check_size)
    orientation = _orientation(content, primary, items.values())
    return Picture("AVIF", *_size(content, primary), patched, orientation, needs_process=True)


def read_heic(content: bytes, check_size: CheckSize) -> Picture:
    """Reads the boxes. The size is that of the primary item as libheif crops and rotates it."""
    patched, primary, _ = _read(content, b"hvc1", b"heic", check_size)
    return Picture("HEIF", *_transformed_size(content, primary), patched, needs_process=True)


def _read(
    content: bytes, codec: bytes, brand: bytes, check_size: CheckSize
) -> tuple[bytes, _Item, dict[int, _Item]]:
    """Returns the file for the decoder, its primary item, and all items."""
    patches: dict[int, bytes] = {}  # by offset, four bytes each
    boxes = list(_boxes(content, 0, len(content)))
    if boxes[0].kind != b"ftyp":
        raise unreadable()
    _patch_brands(content, boxes[0], brand, patches)
    metas = [box for box in boxes if box.kind == b"meta"]
    _patch([box for box in boxes if box.kind not in _KEPT_BOXES] + metas[1:], patches)
    if not metas:
        raise unreadable()
    meta = _only(_boxes(content, metas[0].body + 4, metas[0].end), patches)
    kinds = _item_kinds(content, meta[b"iinf"], codec, patches)
    items = _items(content, meta, kinds)
    for item in items.values():
        for box in item.properties:
            if box.kind == b"ispe":
                check_size(*_size_of(content, box))
    references = _tiles(content, meta.get(b"iref"))
    for number, item in items.items():
        if item.kind == _GRID:
            tiles = [items.get(tile) for tile in references.get(number, ())]
            _check_grid(content, item, tiles, codec, check_size)
    version = content[meta[b"pitm"].body]
    (number,) = struct.unpack_from(">I" if version else ">H", content, meta[b"pitm"].body + 4)
    primary = items.get(number)
    if primary is None:
        raise unreadable()
    if primary.kind not in (codec, _GRID):
        raise ImageUnreadable(
            f"image is an item of kind {primary.kind!r}, which this server does not read; "
            "convert it to JPEG or PNG"
        )
    return _patched(content, patches), primary, items


def _boxes(content: bytes, start: int, end: int) -> Iterator[_Box]:
    count = 0
    while start + _BOX.size <= end:
        count += 1
        check_count("boxes", count, _MAX_BOXES)
        size, kind = _BOX.unpack_from(content, start)
        body = start + _BOX.size
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, body)
            body += 8
        box_end = start + size if size else end
        if not body <= box_end <= end:
            raise unreadable()
        yield _Box(kind, start + 4, body, box_end)
        start = box_end


def _only(boxes: Iterator[_Box], patches: dict[int, bytes]) -> dict[bytes, _Box]:
    """Returns the boxes that describe the picture, one of each kind, and blanks all others."""
    found: dict[bytes, _Box] = {}
    for box in boxes:
        if box.kind not in _KEPT_DESCRIPTIONS or (box.kind in found and box.kind != _FREE):
            _patch([box], patches)
        found.setdefault(box.kind, box)
    if not found.keys() >= {b"pitm", b"iinf", b"iloc", b"iprp"}:
        raise unreadable()
    return found


def _patch(boxes: Sequence[_Box], patches: dict[int, bytes]) -> None:
    patches.update((box.name, _FREE) for box in boxes)


def _patch_brands(content: bytes, box: _Box, brand: bytes, patches: dict[int, bytes]) -> None:
    """Declares the file a still picture, not also a sequence."""
    check_count("brands", (box.end - box.body) // 4, _MAX_BOXES)
    patches[box.body] = brand
    for place in range(box.body + 8, box.end - 3, 4):
        if content[place : place + 4] in (_AVIF_BRANDS | _HEIC_BRANDS | _ANY_BRANDS) - {brand}:
            patches[place] = _STILL


def _patched(content: bytes, patches: Mapping[int, bytes]) -> bytes:
    patched = bytearray(content)
    for place, name in patches.items():
        patched[place : place + 4] = name
    return bytes(patched)


def _item_kinds(content: bytes, box: _Box, codec: bytes, patches: dict[int, bytes]) -> dict[int, bytes]:
    """Returns the kinds of items; blanks those that are neither coded pictures nor grids of them."""
    start = box.body + (6 if content[box.body] == 0 else 8)
    kinds: dict[int, bytes] = {}
    for entry in _boxes(content, start, box.end):
        version = content[entry.body]
        (number,) = struct.unpack_from(">I" if version == 3 else ">H", content, entry.body + 4)
        kind_at = entry.body + (10 if version == 3 else 8)
        kind = content[kind_at : kind_at + 4]
        if entry.kind != b"infe" or version not in (2, 3) or kind_at + 4 > entry.end or number in kinds:
            raise unreadable()
        kinds[number] = kind
        if kind not in (codec, _GRID):
            patches[kind_at] = _NO_ITEM
    return kinds


def _items(content: bytes, meta: Mapping[bytes, _Box], kinds: Mapping[int, bytes]) -> dict[int, _Item]:
    extents = dict(_locations(content, meta[b"iloc"], meta.get(b"idat")))
    if sum(end - start for places in extents.values() for start, end in places) > len(content):
        raise unreadable()  # items share bytes, which decoders would copy for each
    properties: list[_Box] = []
    associations: dict[int, list[int]] = {}
    for box in _boxes(content, meta[b"iprp"].body, meta[b"iprp"].end):
        if box.kind == b"ipco":
            properties += _boxes(content, box.body, box.end)
            check_count("properties", len(properties), _MAX_BOXES)
        elif box.kind == b"ipma":
            associations.update(_associations(content, box))
    return {
        number: _Item(
            kind,
            extents.get(number, ()),
            [properties[index - 1] for index in associations.get(number, ()) if 0 < index <= len(properties)],
        )
        for number, kind in kinds.items()
    }


def _locations(content: bytes, box: _Box, idat: _Box | None) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yields item ids and their extents."""
    reader = _Reader(content, box.body, box.end)
    version, _, sizes = reader.number(1), reader.number(3), reader.number(2)
    offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_bytes = sizes & 15 if version else 0
    id_bytes = 4 if version == 2 else 2
    total = 0
    for _ in range(reader.number(id_bytes)):
        number = reader.number(id_bytes)
        method = reader.number(2) & 15 if version else 0
        reader.number(2)  # data reference index: there is only one file
        base, places = reader.number(base_bytes), []
        count = reader.number(2)
        total += 1 + count
        check_count("extents", total, _MAX_EXTENTS)
        for _ in range(count):
            reader.number(index_bytes)
            start = base + reader.number(offset_bytes)
            length = reader.number(length_bytes)
            if method == 1 and idat is not None:
                start += idat.body
            end = start + length if length else len(content)
            if method > 1 or end > len(content):
                raise unreadable()
            places.append((start, end))
        yield number, places


def _associations(content: bytes, box: _Box) -> Iterator[tuple[int, list[int]]]:
    """Yields item ids and the indices of their properties, in the order in which they apply."""
    reader = _Reader(content, box.body, box.end)
    version, flags = reader.number(1), reader.number(3)
    size, mask = (2, 0x7FFF) if flags & 1 else (1, 0x7F)
    items = reader.number(4)
    check_count("items", items, _MAX_BOXES)
    total = 0
    for _ in range(items):
        number = reader.number(4 if version else 2)
        count = reader.number(1)
        total += count
        check_count("properties", total, _MAX_EXTENTS)
        yield number, [reader.number(size) & mask for _ in range(count)]


def _tiles(content: bytes, box: _Box | None) -> dict[int, list[int]]:
    """Returns the tiles of each grid."""
    made_from: dict[int, list[int]] = {}
    if box is None:
        return made_from
    size = 4 if content[box.body] else 2
    total = 0
    for reference in _boxes(content, box.body + 4, box.end):
        reader = _Reader(content, reference.body, reference.end)
        number, count = reader.number(size), reader.number(2)
        total += count
        check_count("references", total, _MAX_EXTENTS)
        numbers = [reader.number(size) for _ in range(count)]
        if reference.kind == b"dimg":
            made_from.setdefault(number, numbers)
    return made_from


def _check_grid(
    content: bytes, grid: _Item, tiles: Sequence[_Item | None], codec: bytes, check_size: CheckSize
) -> None:
    """Checks that a grid's tiles are coded pictures of one size, and no more than needed to cover it."""
    data = _data(content, grid)
    flags, rows, columns = data[1], data[2] + 1, data[3] + 1
    width, height = struct.unpack_from(">II" if flags & 1 else ">HH", data, 4)
    check_size(width, height)
    if len(tiles) != rows * columns or (width, height) != _size(content, grid):
        raise unreadable()
    for tile in tiles:
        if tile is None or tile.kind != codec:  # a grid of grids could contain itself
            raise unreadable()
        tile_width, tile_height = _size(content, tile)
        if (columns - 1) * tile_width >= width or (rows - 1) * tile_height >= height:
            raise unreadable()


def _size(content: bytes, item: _Item) -> tuple[int, int]:
    for box in item.properties:
        if box.kind == b"ispe":
            return _size_of(content, box)
    raise unreadable()


def _size_of(content: bytes, box: _Box) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", content, box.body + 4)
    return width, height


def _orientation(content: bytes, primary: _Item, items: Iterable[_Item]) -> int:
    """Returns the EXIF orientation for the item's rotation and mirroring, as Pillow does for AVIF.

    An orientation in EXIF is ignored, but keeps Pillow from reading XMP.
    """
    turns = mirror = None
    for box in primary.properties:
        if box.kind == b"irot" and turns is None:
            turns = content[box.body] & 3
        elif box.kind == b"imir" and mirror is None:
            mirror = content[box.body] & 1
    if mirror is not None:
        return ((4, 2), (5, 7), (2, 4), (7, 5))[turns or 0][mirror]
    if turns:
        return (1, 8, 3, 6)[turns]
    data = {item.kind: _data(content, item) for item in items if item.kind in (b"Exif", b"mime")}
    exif = data.get(b"Exif", b"")
    skipped = 4 + int.from_bytes(exif[:4], "big")
    if orientation_of(exif[skipped:], b"") is not None:
        return 1
    return orientation_of(b"", data.get(b"mime", b"")) or 1


def _data(content: bytes, item: _Item) -> bytes:
    return b"".join(content[start:end] for start, end in item.extents)


def _transformed_size(content: bytes, item: _Item) -> tuple[int, int]:
    width, height = _size(content, item)
    for box in item.properties:
        if box.kind == b"clap":
            width, height = _cropped(content, box, (width, height))
        elif box.kind == b"irot" and content[box.body] & 1:
            width, height = height, width
    return width, height


def _cropped(content: bytes, box: _Box, size: tuple[int, int]) -> tuple[int, int]:
    width, width_parts, height, height_parts = struct.unpack_from(">4I", content, box.body)
    if not width_parts or not height_parts or width % width_parts or height % height_parts:
        raise unreadable()
    cropped = width // width_parts, height // height_parts
    if not (0 < cropped[0] <= size[0] and 0 < cropped[1] <= size[1]):
        raise unreadable()
    return cropped


class _Reader:
    def __init__(self, content: bytes, start: int, end: int) -> None:
        self._content = content
        self._position = start
        self._end = end

    def number(self, size: int) -> int:
        """Returns the next number of `size` bytes; 0 if `size` is 0."""
        start, self._position = self._position, self._position + size
        if self._position > self._end:
            raise unreadable()
        return int.from_bytes(self._content[start : self._position], "big")
