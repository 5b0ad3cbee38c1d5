"""Images crafted to break decoders: small files that would be expensive, grouped by the resource they use."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image

MAX_BYTES = 10 << 20  # of an image, the server's default limit
MAX_PIXELS = 25_000_000
SIDE = 5000  # of the largest square

DATA = Path(__file__).parents[1] / "data"

Build = Callable[[], bytes]


@cache
def picture(file_format: str, side: int = 64, mode: str = "RGB", **options: object) -> bytes:
    """Encodes a gradient."""
    buffer = BytesIO()
    Image.radial_gradient("L").resize((side, side)).convert(mode).save(buffer, file_format, **options)
    return buffer.getvalue()


def gif(frame: tuple[int, int, int, int], before: bytes = b"", screen: tuple[int, int] = (1, 1)) -> bytes:
    """Builds a GIF with a frame of (left, top, width, height), and little data."""
    return (
        b"GIF89a" + struct.pack("<HHBBB", *screen, 0, 0, 0) + before
        + b"," + struct.pack("<HHHHB", *frame, 0) + b"\x02\x02\x44\x01\0;"
    )  # fmt: skip


GIF_DISPOSAL = b"!\xf9\x04\x08\0\0\0\0"  # the decoder fills the frame's area before it reads the frame


def gif_with(extensions: bytes) -> bytes:
    """Builds a GIF with extensions before its first frame."""
    content = picture("GIF", mode="L")
    start = 13 + (3 << (content[10] & 7) + 1)
    return content[:start] + extensions + content[start:]


def jpeg_with(header: bytes, content: bytes | None = None) -> bytes:
    """Builds a JPEG with additional header segments."""
    content = content or picture("JPEG")
    return content[:2] + header + content[2:]


def segment(marker: int, data: bytes) -> bytes:
    """Builds a JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Builds a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(chunks: bytes, *, before: bytes = b"IDAT", content: bytes | None = None) -> bytes:
    """Builds a PNG with additional chunks."""
    content = content or picture("PNG")
    position = content.index(before) - 4
    return content[:position] + chunks + content[position:]


def riff(kind: bytes, data: bytes) -> bytes:
    """Builds a WEBP chunk."""
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp_with(chunks: bytes, flags: int = 0, canvas: tuple[int, int] = (64, 64)) -> bytes:
    """Builds a WEBP with chunks after the picture."""
    edges = b"".join(struct.pack("<I", edge - 1)[:3] for edge in canvas)
    body = b"WEBP" + riff(b"VP8X", bytes([flags, 0, 0, 0]) + edges) + picture("WEBP")[12:] + chunks
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_of_runs(runs: bytes, side: int = SIDE, bits: int = 8) -> bytes:
    """Builds a run-length encoded BMP with a palette of two colours."""
    palette = b"\x10\x20\x30\0\x40\x50\x60\0"
    header = struct.pack("<IIIHHIIIIII", 40, side, side, 1, bits, 1 if bits == 8 else 2, 0, 1, 1, 2, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs


def tiff(*tags: tuple[int, int, int, bytes], data: bytes = b"") -> bytes:
    """Builds a TIFF from tags (number, kind, count, four bytes of value or offset) and data after them."""
    table = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3].ljust(4, b"\0") for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + bytes(4) + data


def number(tag: int, value: int) -> tuple[int, int, int, bytes]:
    """Builds a tag with one number."""
    return tag, 4, 1, struct.pack("<I", value)


def tiff_of_strips(count: int) -> bytes:
    """Builds a TIFF eight pixels wide, with each row in its own strip."""
    row = b"\0\xff"  # one literal byte
    start = 14 + 12 * 7
    places = range(start + 8 * count, start + (8 + len(row)) * count, len(row))
    return tiff(
        *(number(256, 8), number(257, count), number(259, 32773), number(277, 1), number(278, 1)),
        *((273, 4, count, struct.pack("<I", start)), (279, 4, count, struct.pack("<I", start + 4 * count))),
        data=struct.pack(f"<{count}I", *places) + struct.pack("<I", len(row)) * count + row * count,
    )


def avif_says(width: int, height: int) -> bytes:
    """Builds an AVIF whose header claims this size, whatever its stream says."""
    return picture("AVIF").replace(struct.pack(">II", 64, 64), struct.pack(">II", width, height))


def avif_with_items(count: int) -> bytes:
    """Builds an AVIF with many hidden items, and metadata among them."""
    infe = b"".join(
        struct.pack(">I4sIHH5s", 21, b"infe", 2 << 24, each, 0, b"mime\0") for each in range(2, count + 2)
    )
    content = picture("AVIF")
    start = content.index(b"iinf") - 4
    (length,) = struct.unpack_from(">I", content, start)
    meta = content.index(b"meta") - 4
    grown = bytearray(content[: start + length] + infe + content[start + length :])
    struct.pack_into(">I", grown, start, length + len(infe))
    struct.pack_into(">H", grown, start + 12, count + 1)
    struct.pack_into(">I", grown, meta, struct.unpack_from(">I", content, meta)[0] + len(infe))
    place = grown.index(b"iloc") + 4 + 14  # of the first extent
    struct.pack_into(">I", grown, place, struct.unpack_from(">I", grown, place)[0] + len(infe))
    return bytes(grown)


def exif_directory(entries: int, order: str = ">") -> bytes:
    """Builds EXIF with many tags, each of which points to a large value elsewhere."""
    table = b"".join(struct.pack(f"{order}HHII", tag % 65_536, 1, 65_536, 8) for tag in range(entries))
    start = b"MM\0*" if order == ">" else b"II*\0"
    return start + struct.pack(f"{order}IH", 8, entries) + table + bytes(4) + bytes(65_536)


def _filled(unit: bytes, around: Callable[[bytes], bytes]) -> bytes:
    """Repeats a part until the file has the maximum size."""
    room = MAX_BYTES - len(around(b""))
    return around(unit * (room // len(unit)))


def _many(count: int, unit: bytes, around: Callable[[bytes], bytes]) -> bytes:
    return around(unit * count)


# Files that claim to be larger than their contents.
SIZES: dict[str, Build] = {
    "GIF, first frame 40,000² with disposal": lambda: gif((0, 0, 40_000, 40_000), GIF_DISPOSAL),
    "GIF, first frame 65,535² with disposal": lambda: gif((0, 0, 65_535, 65_535), GIF_DISPOSAL),
    "GIF, small frame far out": lambda: gif((65_000, 65_000, 9, 9), GIF_DISPOSAL),
    "GIF, frame hidden by an empty extension": lambda: gif(
        (0, 0, 9, 9),
        b"!\xf9\0" + b"\x20" + bytes(32) + b"\0," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0),
    ),
    "WEBP, canvas 16,384² of a small picture": lambda: webp_with(b"", canvas=(16_384, 16_384)),
    "PNG, second header of 60,000²": lambda: png_with(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    ),
    "APNG, first frame of 60,000²": lambda: png_with(
        chunk(b"acTL", struct.pack(">II", 2, 0))
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 60_000, 60_000, 0, 0, 1, 1, 1, 0))
    ),
    "TIFF, 60,000²": lambda: tiff(
        *(number(256, 60_000), number(257, 60_000), number(259, 1), number(273, 8), number(279, 9))
    ),
    "TIFF, tiles of 60,000² for a small picture": lambda: tiff(
        *(number(256, 9), number(257, 9), number(259, 5), number(322, 60_000), number(323, 60_000)),
        *(number(324, 8), number(325, 9)),
    ),
    "TIFF, strips of 2 GB for a small picture": lambda: tiff(
        *(number(256, 9), number(257, 9), number(259, 5), number(273, 8), number(279, 1 << 31))
    ),
    "AVIF, 60,000²": lambda: avif_says(60_000, 60_000),
    "AVIF, stream of 12,288² for an item of 64²": (DATA / "avif" / "large_stream.avif").read_bytes,
    "JPEG, 159 frame headers of 21,000 components": lambda: _many(
        159, segment(0xC0, struct.pack(">BHHB", 8, 64, 64, 3) + b"\1\x11\0" * 21_000), jpeg_with
    ),
}

# Files that keep a decoder busy, or hold the GIL.
SLOW: dict[str, Build] = {
    "BMP, 5000 ends of lines": lambda: bmp_of_runs(b"\1\0\0\0" * SIDE),
    "BMP, runs of half bytes": lambda: bmp_of_runs((b"\xff\x01" * 20 + b"\0\0") * SIDE, bits=4),
    "BMP, runs of nothing, 10 MB": lambda: _filled(
        b"\1\0", lambda runs: bmp_of_runs(b"\xff\0" * 20 + runs)
    ),
    "BMP, half bytes one by one": lambda: bmp_of_runs(
        ((b"\0\xfe" + b"\1" * 127 + b"\0") * 16 + b"\0\0") * 4064, side=4064, bits=4
    ),
    "BMP, palette of 65,536": lambda: _bmp_with_palette(65_536),
    "JPEG, 32,000 EXIF segments": lambda: _many(32_000, segment(0xE1, b"Exif\0\0" + bytes(290)), jpeg_with),
    "JPEG, 32,000 comments": lambda: _many(32_000, segment(0xFE, bytes(290)), jpeg_with),
    "JPEG, EXIF of 65,535 tags": lambda: jpeg_with(
        b"".join(
            segment(0xE1, b"Exif\0\0" + part)
            for part in _parts(exif_directory(65_535), 65_000)
        )
    ),
    "JPEG, 150,000 quantization tables": lambda: _filled(
        segment(0xDB, (b"\0" + b"\1" * 64) * 1000), jpeg_with
    ),
    "JPEG, 10 MB of padding": lambda: _filled(b"\xff", jpeg_with),
    "JPEG, 10 MB of junk": lambda: _filled(b"\xff\1", lambda junk: b"\xff\xd8\xff\xd0" + junk),
    "JPEG, segments between scans": lambda: picture("JPEG", progressive=True)[:-2]
    + (b"\xff\xda" * 101).join([segment(0xFE, b"\xff\xda" * 101), b""])
    + b"\xff\xc4\0\2" * 2_400_000,
    "JPEG, 25 million pixels": lambda: picture("JPEG", SIDE),
    "JPEG, 25 million pixels, 100 scans": lambda: _scans(100),
    "PNG, text that inflates to 3 MB": lambda: png_with(
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20)))
    ),
    "PNG, 250 profiles that inflate to 1 MB": lambda: _many(
        250, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes((1 << 20) - 1))), png_with
    ),
    "PNG, EXIF of 65,535 tags": lambda: png_with(chunk(b"eXIf", exif_directory(65_535))),
    "PNG, EXIF in hexadecimal, inflated": lambda: png_with(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n\n\n" + b"4d" * 524_000))
    ),
    "PNG, XMP of 9 MB": lambda: png_with(
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"tiff:Orientation" * 590_000)
    ),
    "PNG, 32,000 chunks of data": lambda: png_with(chunk(b"IDAT") * 32_000),
    "PNG, 25 million pixels": lambda: picture("PNG", SIDE),
    "PNG, 25 million pixels, RGBA": lambda: picture("PNG", SIDE, "RGBA"),
    "GIF, comment of 5 million blocks": lambda: _filled(
        b"\1a", lambda blocks: gif_with(b"!\xfe" + blocks + b"\0")
    ),
    "GIF, extension of 5 million blocks": lambda: _filled(
        b"\1a", lambda blocks: gif_with(b"!\xff" + blocks + b"\0")
    ),
    "GIF, 10 MB without a block": lambda: _filled(b"x", gif_with),
    "GIF, 25 million pixels, transparent": lambda: picture("GIF", SIDE, "P", transparency=3, disposal=2),
    "WEBP, 1.3 million empty chunks": lambda: _filled(riff(b"junk", b""), webp_with),
    "WEBP, EXIF of 65,535 tags": lambda: webp_with(riff(b"EXIF", exif_directory(65_535)), flags=8),
    "WEBP, 25 million pixels": lambda: picture("WEBP", SIDE),
    "WEBP, 25 million pixels, lossless": lambda: picture("WEBP", SIDE, lossless=True, method=0),
    "TIFF, 32,000 strips": lambda: tiff_of_strips(32_000),
    "TIFF, 65,535 tags": lambda: tiff(*[number(tag, 1) for tag in range(65_535)]),
    "TIFF, 1,000 tags of 10 MB each": lambda: _filled(
        b"\0",
        lambda data: tiff(
            *[(50_000 + tag, 1, 10_000_000, struct.pack("<I", 8)) for tag in range(1000)], data=data
        ),
    ),
    "TIFF, 25 million pixels": lambda: picture("TIFF", SIDE, compression="tiff_adobe_deflate"),
    "AVIF, 2,000 items": lambda: avif_with_items(2000),
    "AVIF, 60,000 items": lambda: avif_with_items(60_000),
    "AVIF, 1.3 million empty boxes": lambda: _filled(
        b"\0\0\0\x08free", lambda boxes: picture("AVIF") + boxes
    ),
    "AVIF, 25 million pixels": lambda: picture("AVIF", SIDE, speed=10, quality=20),
    "JPEG, 10 MB of film after it: the cost of receiving": lambda: _filled(
        b"\0", lambda film: picture("JPEG") + film
    ),
    "BMP, 3 million pixels": lambda: picture("BMP", 1800),
}  # fmt: skip


def _parts(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _scans(count: int) -> bytes:
    content = picture("JPEG", SIDE, progressive=True)[:-2]
    last = content.rindex(b"\xff\xda")
    return content + content[last:] * (count - content.count(b"\xff\xda")) + b"\xff\xd9"


def _bmp_with_palette(colours: int) -> bytes:
    header = struct.pack("<IIIHHIIIIII", 40, 64, 64, 1, 8, 0, 0, 1, 1, colours, 0)
    start = 14 + len(header) + 4 * colours
    return b"BM" + struct.pack("<IHHI", start, 0, 0, start) + header + b"\1\2\3\0" * colours + bytes(64 * 64)
