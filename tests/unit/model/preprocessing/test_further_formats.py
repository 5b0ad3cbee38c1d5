"""AVIF, TIFF and HEIC are read if the operator enables them, in bounded time and like Pillow."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from alignserve_server.errors import ImageTooLarge, ImageUnreadable, StartupError
from alignserve_server.model.preprocessing import heif
from alignserve_server.model.preprocessing.decode import (
    FURTHER_FORMATS,
    IMAGE_FORMATS,
    ImageDecoder,
    accepted_formats,
)
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.serving.loading import load_encoder
from alignserve_server.settings import IMAGE_FORMATS as SETTINGS_NAMES
from alignserve_server.settings import Settings
from PIL import ExifTags, Image, ImageOps

from tests.hostile.mutations import mutants

HEIC = {path.stem: path.read_bytes() for path in (Path(__file__).parents[3] / "data" / "heic").iterdir()}
ALL = (*IMAGE_FORMATS, *FURTHER_FORMATS)
CONFIG = {"size": {"height": 40, "width": 90}, "do_center_crop": False}

needs_heif = pytest.mark.skipif(
    not heif.is_installed(), reason="neither pi-heif nor pillow-heif is installed"
)


@pytest.fixture
def decoder() -> ImageDecoder:
    return ImageDecoder(max_bytes=1 << 20, max_pixels=100_000, formats=ALL)


@pytest.fixture
def preprocess(decoder: ImageDecoder) -> ImagePreprocessor:
    return ImagePreprocessor(CONFIG, decoder)


def encoded(file_format: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = BytesIO()
    image = Image.linear_gradient("L").resize((40, 30))
    colours = Image.merge("RGB", [image, image.transpose(Image.Transpose.ROTATE_180), image])
    converted = image.convert(mode) if mode in ("I", "I;16", "F") else colours.convert(mode)
    converted.save(buffer, file_format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


def pixels_of(content: bytes) -> np.ndarray:
    """Returns the result of transformers' `load_image`."""
    with Image.open(BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


PICTURES = {
    **{
        f"tiff, {mode}": encoded("TIFF", mode)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F")
    },
    **{
        f"tiff, {name}": encoded("TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg")
    },
    **{
        f"tiff, {name}": encoded("TIFF", "1", compression=name) for name in ("group3", "group4", "tiff_ccitt")
    },
    "tiff, YCbCr": encoded("TIFF", "YCbCr", compression="jpeg"),
    "tiff, big": encoded("TIFF", big_tiff=True),
    "tiff, strips": encoded("TIFF", compression="tiff_lzw", tiffinfo={278: 7}),
    "tiff, pages": encoded("TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]),
    "tiff, profile and text": encoded("TIFF", icc_profile=b"profile", tiffinfo={270: "text"}),
    **{f"tiff, turned {turn}": encoded("TIFF", exif=exif(turn)) for turn in range(1, 9)},
    **{f"avif, {mode}": encoded("AVIF", mode) for mode in ("L", "RGB", "RGBA")},
    **{f"avif, turned {turn}": encoded("AVIF", exif=exif(turn)) for turn in range(1, 9)},
    "avif, frames": encoded("AVIF", save_all=True, append_images=[Image.new("RGB", (40, 30), "red")]),
    "avif, XMP": encoded("AVIF", xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'),
}


@pytest.mark.parametrize("content", PICTURES.values(), ids=PICTURES.keys())
def test_gives_the_pixels_of_pillow(decoder, content):
    """Any mode, compression and orientation decodes; the first of several pictures is used."""
    np.testing.assert_array_equal(np.asarray(decoder.decode(content)), pixels_of(content))


@needs_heif
@pytest.mark.parametrize("name", HEIC)
def test_gives_the_pixels_of_libheif(decoder, name):
    """HEIC is cropped and rotated as the file says."""
    heif.register()

    pixels = np.asarray(decoder.decode(HEIC[name]))

    np.testing.assert_array_equal(pixels, pixels_of(HEIC[name]))
    assert pixels.shape == ((40, 30, 3) if name == "turned" else (30, 40, 3))


def test_scales_16_bit_greyscale_to_8_bits(decoder):
    """16 bits are scaled as for PNG; 32 bits, which have no such scale, are clipped as in Pillow."""
    values = np.arange(0, 1 << 16, 64, dtype=np.uint16).reshape(32, 32)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")

    pixels = np.asarray(decoder.decode(buffer.getvalue()))

    np.testing.assert_array_equal(pixels[:, :, 0], (values.astype(np.int64) + 128) // 257)


@pytest.mark.parametrize(
    ("content", "name"),
    [(encoded("TIFF"), "TIFF"), (encoded("AVIF"), "AVIF"), (HEIC["gradient"], "HEIC")],
    ids=["tiff", "avif", "heic"],
)
def test_a_format_that_is_off_is_named(content, name):
    """The error names the supported formats, how to convert, and how an operator enables the format."""
    with pytest.raises(ImageUnreadable) as caught:
        ImageDecoder(max_bytes=1 << 20, max_pixels=10_000).read(content)

    assert caught.value.message == (
        f"image is {name}, but this server reads JPEG, PNG, WEBP, GIF, BMP; convert it, for example with "
        f"'magick photo.{name.lower()} photo.jpg', or ask the operator for "
        f"--extra-image-formats {name.lower()}"
    )


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "a video"),
    ],
)
def test_other_formats_are_named(content, name):
    """The error for an unsupported format names the format instead of calling the file corrupt."""
    with pytest.raises(
        ImageUnreadable, match=f"^image is {name}, but this server reads .*; convert it to JPEG"
    ):
        ImageDecoder(max_bytes=1 << 20, max_pixels=10_000, formats=ALL).read(content)


def test_a_web_page_is_not_to_be_converted():
    """A web page saved instead of an image is recognized."""
    with pytest.raises(ImageUnreadable, match=r"a web page; send the image itself$"):
        ImageDecoder(max_bytes=1 << 20, max_pixels=10_000, formats=ALL).read(b"<!DOCTYPE html><html>")


@pytest.mark.parametrize(
    "content", [encoded("TIFF"), encoded("AVIF"), HEIC["gradient"]], ids=["tiff", "avif", "heic"]
)
def test_their_decoders_have_a_process_of_their_own(decoder, content):
    """Pictures of any size decode in a separate process: these C libraries are very new or very old."""
    assert decoder.read(content).needs_process


def test_settings_and_decoder_know_the_same():
    """Settings and decoder use the same names, in lower and upper case."""
    assert tuple(name.upper() for name in SETTINGS_NAMES) == FURTHER_FORMATS


def test_a_format_without_its_package_refuses_the_start(monkeypatch: pytest.MonkeyPatch):
    """The error names the setting and the package to install."""
    monkeypatch.setattr(heif, "_PACKAGES", ("no_such_package",))

    with pytest.raises(
        ValueError, match=r"extra_image_formats: heic needs pi-heif; pip install 'alignserve\[heif\]'"
    ):
        accepted_formats(["HEIC"])
    assert accepted_formats(["TIFF", "AVIF"]) == (*IMAGE_FORMATS, "AVIF", "TIFF")


def test_the_server_does_not_start_without_the_package(monkeypatch: pytest.MonkeyPatch):
    """The error comes before the model is loaded."""
    monkeypatch.setattr(heif, "_PACKAGES", ("no_such_package",))

    with pytest.raises(StartupError, match="heic needs pi-heif"):
        load_encoder(Settings(extra_image_formats="heic"))


def tiff(*entries: tuple[int, int, int, bytes], data: bytes = b"") -> bytes:
    """A TIFF with one directory: tag, type, count, and the values or their offset."""
    table = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + data


def long(tag: int, value: int) -> tuple[int, int, int, bytes]:
    return tag, 4, 1, struct.pack("<I", value)


STRIP = (long(259, 1), long(273, 8), long(278, 1 << 31), long(279, 99))
HUGE = {
    "tiff": tiff(long(256, 65_000), long(257, 65_000), *STRIP),
    "tiff, tiles": tiff(
        *(
            long(256, 9),
            long(257, 9),
            long(259, 5),
            long(322, 1 << 16),
            long(323, 1 << 16),
            long(324, 8),
            long(325, 9),
        )
    ),
    "tiff, much tile around little picture": tiff(
        *(
            long(256, 1),
            long(257, 9000),
            long(259, 5),
            long(322, 300),
            long(323, 300),
            long(324, 8),
            long(325, 9),
        )
    ),
    "avif": encoded("AVIF").replace(struct.pack(">II", 40, 30), struct.pack(">II", 40_000, 30_000)),
    "heic": HEIC["gradient"].replace(struct.pack(">II", 64, 64), struct.pack(">II", 60_000, 30_000)),
}


@pytest.mark.parametrize("content", HUGE.values(), ids=HUGE.keys())
def test_a_size_is_checked_before_a_decoder_sees_it(decoder, content):
    """The sizes of the picture, of its tiles and of the whole grid are checked."""
    with pytest.raises(ImageTooLarge, match=r"pixels, limit|limit 65535"):
        decoder.read(content)


BROKEN = {
    "tiff, overlapping strips": tiff(
        *(long(256, 9), long(257, 2), long(259, 5), long(278, 1), (273, 4, 2, struct.pack("<I", 86))),
        *((279, 3, 2, struct.pack("<HH", 90, 90)),),
        data=bytes(60),
    ),
    "tiff, a directory behind the end": b"II*\0\xff\xff\0\0",
    "tiff, a directory beyond all memory": b"II+\0\x08\0\0\0" + b"\xff" * 8,
    "tiff, a picture without strips": tiff(long(256, 9), long(257, 9)),
    "tiff, fewer strips than rows": tiff(
        long(256, 9), long(257, 9), long(259, 1), long(273, 8), long(278, 1)
    ),
    "tiff, offsets behind the end": tiff(
        long(256, 9), long(257, 9), (273, 4, 1 << 30, b"\x08"), long(278, 9)
    ),
    "avif, cut off": encoded("AVIF")[:-9],
    "avif, only its name": encoded("AVIF")[:32],
    "avif, called HEIC": encoded("AVIF").replace(b"ftypavif", b"ftypheic"),
    "avif, another primary item": encoded("AVIF").replace(b"av01Color", b"iovlColor"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_parts_that_do_not_fit_are_refused(decoder, content):
    """The file is refused before a decoder reads it."""
    with pytest.raises(ImageUnreadable):
        decoder.read(content)


@pytest.mark.parametrize("method", [6, 34_925, 50_000, 50_001, 34_712])
def test_compressions_are_few(decoder, method):
    """The error for an unsupported compression says how to save the file."""
    content = tiff(long(256, 9), long(257, 9), long(259, method), long(273, 8), long(278, 9), long(279, 9))

    with pytest.raises(ImageUnreadable, match=f"compression {method}, .*save it with LZW, Deflate or JPEG"):
        decoder.read(content)


def test_directories_with_many_tags_are_refused(decoder):
    """Large directories are refused: Pillow would read them in Python."""
    with pytest.raises(ImageTooLarge, match="more than 1024 tags"):
        decoder.read(tiff(*[long(50_000 + number, 1) for number in range(1025)]))


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + kind + data


def tile() -> bytes:
    buffer = BytesIO()
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(buffer, "AVIF")
    return buffer.getvalue()


def avif_grid(
    size: tuple[int, int], *, columns: int, rows: int, tiles: list[int], kind: bytes = b"av01"
) -> bytes:
    """An AVIF whose item 1 is a grid of `tiles`; items 2 to 5 are one coded picture of 64 by 64."""
    picture = tile()
    ipco = picture[picture.index(b"ipco") - 4 :]
    properties = ipco[8 : struct.unpack_from(">I", ipco)[0]]
    count = len(list(_kinds(properties)))
    properties += box(b"ispe", bytes(4) + struct.pack(">II", *size))
    data = picture[picture.index(b"mdat") + 4 :]
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *size)
    coded = range(2, 6)
    ipma = struct.pack(">IIHBB", 0, 5, 1, 1, count + 1)
    ipma += b"".join(struct.pack(">HB", number, count) + bytes(range(1, count + 1)) for number in coded)
    kinds = {1: b"grid", **dict.fromkeys(coded, kind)}
    infe = [
        box(b"infe", b"\2\0\0\0" + struct.pack(">HH", *item) + name + b"\0")
        for item, name in (((number, 0), name) for number, name in kinds.items())
    ]
    dimg = box(b"dimg", struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *tiles))

    def meta(mdat: int) -> bytes:
        places = [
            (1, 1, 0, len(grid)),
            *((number, 0, mdat + (number - 2) * len(data), len(data)) for number in coded),
        ]
        iloc = b"".join(struct.pack(">HHHHII", *place[:2], 0, 1, *place[2:]) for place in places)
        boxes = [
            box(b"hdlr", bytes(8) + b"pict" + bytes(13)),
            box(b"pitm", bytes(4) + struct.pack(">H", 1)),
            box(b"iloc", b"\1\0\0\0\x44\0" + struct.pack(">H", 5) + iloc),
            box(b"iinf", bytes(4) + struct.pack(">H", 5) + b"".join(infe)),
            box(b"iref", bytes(4) + dimg),
            box(b"iprp", box(b"ipco", properties) + box(b"ipma", ipma)),
            box(b"idat", grid),
        ]
        return box(b"meta", bytes(4) + b"".join(boxes))

    start = box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miaf")
    return start + meta(len(start) + len(meta(0)) + 8) + box(b"mdat", data * 4)


def _kinds(boxes: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(boxes):
        (size,) = struct.unpack_from(">I", boxes, position)
        yield boxes[position + 4 : position + 8]
        position += size


def test_reads_a_grid(decoder):
    """Grids as phones write them decode, cropped on the right and at the bottom."""
    content = avif_grid((100, 128), columns=2, rows=2, tiles=[2, 3, 4, 5])

    pixels = np.asarray(decoder.decode(content))

    assert pixels.shape == (128, 100, 3)
    np.testing.assert_array_equal(pixels, pixels_of(content))


@pytest.mark.parametrize(
    "content",
    [
        avif_grid((100, 128), columns=2, rows=2, tiles=[1, 1, 1, 1]),
        avif_grid((100, 128), columns=2, rows=2, tiles=[2, 3, 4, 5], kind=b"grid"),
        avif_grid((100, 128), columns=2, rows=2, tiles=[2, 2]),
        avif_grid((100, 128), columns=2, rows=2, tiles=[2, 3, 4, 9]),
        avif_grid((60, 60), columns=16, rows=16, tiles=[2] * 256),
    ],
    ids=["of itself", "of grids", "too few tiles", "of nothing", "tiles beyond the picture"],
)
def test_a_grid_is_of_coded_pictures_and_no_more_than_cover_it(decoder, content):
    """Other grids are refused: they could contain themselves, or decode far more than they show."""
    with pytest.raises(ImageUnreadable):
        decoder.read(content)


def test_references_are_counted_together(decoder):
    """Long lists are refused: ten megabytes could hold five million numbers to read."""
    content = encoded("AVIF")
    start = content.index(b"meta") - 4
    (length,) = struct.unpack_from(">I", content, start)
    references = [box(b"dimg", struct.pack(">2050H", item, 2048, *[1] * 2048)) for item in range(5)]
    iref = box(b"iref", bytes(4) + b"".join(references))
    meta = struct.pack(">I", length + len(iref)) + content[start + 4 : start + length] + iref

    with pytest.raises(ImageTooLarge, match="references"):
        decoder.read(content[:start] + meta + content[start + length :])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("file_format", ["TIFF", "AVIF", pytest.param("HEIC", marks=needs_heif)])
def test_a_thousand_damaged_files_end_no_process(preprocess, file_format):
    """Each mutant is decoded or refused without a crash; the mutants are the same in every run."""
    originals = [content for name, content in PICTURES.items() if name.startswith(file_format.lower())]
    originals = originals or list(HEIC.values())
    outcomes: dict[str, int] = {}

    for original in originals:
        for content in mutants(original, -(-1000 // len(originals))):
            try:
                preprocess(content)
                outcome = "decoded"
            except (ImageUnreadable, ImageTooLarge) as error:
                outcome = error.message
            outcomes[outcome] = outcomes.get(outcome, 0) + 1

    assert outcomes["decoded"]
    assert sum(outcomes.values()) >= 1000
    assert not any("crashes its decoder" in outcome for outcome in outcomes)


def test_a_decoder_that_crashes_fails_only_its_image(preprocess, monkeypatch: pytest.MonkeyPatch):
    """After a crash, the next image gets a new process."""
    content = encoded("TIFF")
    expected = preprocess(content)
    (process,) = preprocess._processes._idle
    process._process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(process, "_send", lambda *_: process._process.kill())

    with pytest.raises(ImageUnreadable, match="crashes its decoder"):
        preprocess(content)

    np.testing.assert_array_equal(preprocess(content), expected)


def test_memory_is_limited_where_codecs_run(preprocess):
    """A stream that claims more than its container cannot exhaust the machine's memory."""
    content = encoded("AVIF")
    preprocess(content)
    (process,) = preprocess._processes._idle
    status = Path(f"/proc/{process._process.pid}/status").read_text(encoding="ascii")
    limits = Path(f"/proc/{process._process.pid}/limits").read_text(encoding="ascii")
    (used,) = [int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData")]
    (limit,) = [int(line.split()[3]) for line in limits.splitlines() if line.startswith("Max data size")]

    assert limit < used + (128 << 20)


def test_broken_files_write_nothing_to_the_log(preprocess, capfd: pytest.CaptureFixture[str]):
    """Messages that libtiff writes to standard error stay out of the log."""
    content = bytearray(encoded("TIFF", compression="tiff_lzw"))
    content[20:60] = bytes(40)

    with pytest.raises(ImageUnreadable):
        preprocess(bytes(content))

    assert capfd.readouterr() == ("", "")
