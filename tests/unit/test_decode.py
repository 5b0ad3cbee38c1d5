"""Untrusted bytes decode, or fail with an error that names what is wrong, and nothing else happens."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import zlib
from io import BytesIO

import numpy as np
import pytest
from alignserve_server.errors import ImageTooLarge, ImageUnreadable
from alignserve_server.model.decode import IMAGE_FORMATS, ImageDecoder
from PIL import ExifTags, Image

MAX_PIXELS = 100_000


@pytest.fixture
def decoder() -> ImageDecoder:
    return ImageDecoder(max_bytes=1 << 20, max_pixels=MAX_PIXELS)


def encoded(file_format: str, size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    gradient = Image.linear_gradient("L").resize(size).convert("RGB")
    buffer = BytesIO()
    gradient.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG without pixels, so that any attempt to decode them would fail."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT"


def huge_bmp() -> bytes:
    content = bytearray(encoded("BMP"))
    content[18:26] = struct.pack("<ii", 65500, 65500)
    return bytes(content)


def huge_gif() -> bytes:
    content = bytearray(encoded("GIF"))
    content[6:10] = struct.pack("<HH", 65500, 65500)
    return bytes(content)


def huge_jpeg() -> bytes:
    content = bytearray(encoded("JPEG"))
    start_of_frame = content.index(b"\xff\xc0")
    content[start_of_frame + 5 : start_of_frame + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(content)


def huge_webp() -> bytes:
    frame = encoded("WEBP")[12:]
    edge = struct.pack("<I", 16382)[:3]
    animation = b"\0" * 6 + struct.pack("<I", 39)[:3] + struct.pack("<I", 29)[:3] + b"\0" * 4 + frame
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + b"\x12\0\0\0" + edge + edge
    body += (
        b"ANIM" + struct.pack("<I", 6) + b"\0" * 6 + b"ANMF" + struct.pack("<I", len(animation)) + animation
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("file_format", IMAGE_FORMATS)
def test_decodes_every_accepted_format(decoder, file_format):
    """Each format that the server announces gives RGB of the image's size."""
    image = decoder.decode(encoded(file_format))

    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"just text",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%PDF-1.7",
        b"\x89PNG\r\n\x1a\n",
        encoded("TIFF"),
        encoded("ICO"),
        encoded("PPM"),
        encoded("JPEG")[:-200],
        encoded("JPEG")[:30],
        encoded("PNG")[:-40],
        encoded("GIF")[:-20],
        encoded("WEBP")[:-10],
        encoded("BMP")[:-10],
        png_header(40, 30),
        png_header(0, 30),
        png_header(40, 0),
    ],
    ids=lambda content: f"{content[:8]!r}-{len(content)}",
)
def test_refuses_what_is_not_a_whole_image(decoder, content):
    """Other formats, broken files and incomplete ones are unreadable, in words of our own."""
    with pytest.raises(ImageUnreadable, match=r"^image (is|has) ") as caught:
        decoder.decode(content)

    assert "BytesIO" not in caught.value.message
    assert "/" not in caught.value.message


@pytest.mark.parametrize(
    "content",
    [png_header(65500, 65500), huge_jpeg(), huge_gif(), huge_bmp(), huge_webp()],
    ids=["png", "jpeg", "gif", "bmp", "webp"],
)
def test_refuses_too_many_pixels_by_the_header(decoder, content):
    """A decompression bomb is refused before its pixels are decoded."""
    with pytest.raises(ImageTooLarge, match=rf"image has \d+ x \d+ = \d+ pixels, limit {MAX_PIXELS};"):
        decoder.decode(content)


def test_counts_pixels_exactly(decoder):
    """As many pixels as the limit pass, one more does not."""
    assert decoder.decode(encoded("PNG", (MAX_PIXELS // 2, 2))).height == 2

    with pytest.raises(ImageTooLarge, match="image has 9091 x 11 = 100001 pixels, limit 100000"):
        decoder.decode(encoded("PNG", (9091, 11)))


@pytest.mark.parametrize(
    ("size", "message"), [((65_536, 1), "width of 65536"), ((1, 65_536), "height of 65536")]
)
def test_refuses_a_side_that_is_too_long(decoder, size, message):
    """A line of few pixels, which would take much memory to resize, is refused by the side at fault."""
    with pytest.raises(ImageTooLarge, match=f"image has a {message}, limit 65535;"):
        decoder.decode(png_header(*size))


def test_decodes_the_longest_side(decoder):
    """Exactly as much as the limit passes."""
    assert decoder.decode(encoded("PNG", (65_535, 1))).width == 65_535


def jpeg_with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are `count`."""
    content = encoded("JPEG", progressive=True)[:-2]
    last = content.rindex(b"\xff\xda")
    return content + content[last:] * (count - content.count(b"\xff\xda")) + b"\xff\xd9"


def jpeg_with(header: bytes) -> bytes:
    """A JPEG with more in its header."""
    content = encoded("JPEG")
    return content[:2] + header + content[2:]


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(chunks: bytes, *, before: bytes = b"IDAT") -> bytes:
    """A PNG with more chunks."""
    content = encoded("PNG")
    position = content.index(before) - 4
    return content[:position] + chunks + content[position:]


COMMENT = b"\xff\xfe\0\2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (jpeg_with_scans(101), "100 scans"),
        (jpeg_with(COMMENT * 40_000), "32768 segments and padding"),
        (jpeg_with(b"\xff" * 40_000), "32768 segments and padding"),
        (jpeg_with(b"\xff\xd9" + COMMENT * 40_000), "32768 segments and padding"),
        (b"\xff\xd8" + b"\xff" * 40_000, "32768 segments and padding"),
        (png_with(chunk(b"IDAT") * 40_000), "32768 chunks"),
        (png_with(chunk(b"fdAT") * 40_000, before=b"IEND"), "32768 chunks"),
        (png_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(b"a")) * 257), "256 metadata chunks"),
        (png_with(chunk(b"prVt") * 257, before=b"IEND"), "256 metadata chunks"),
    ],
    ids=[
        *("scans", "comments", "padding", "hidden by an end", "padding only"),
        *("empty data", "frames", "profiles", "after the picture"),
    ],
)
def test_refuses_more_parts_than_a_real_file_has(decoder, content, message):
    """A small file that would keep a decoder busy for long is refused before it is opened."""
    with pytest.raises(ImageTooLarge, match=f"image has more than {message}, the limit;"):
        decoder.decode(content)


@pytest.mark.parametrize(
    "content",
    [
        jpeg_with_scans(100),
        jpeg_with(b"\xff\xfe\x01\x2e" + b"\xff\xda" * 150),
        jpeg_with(b"") + b"\xff\xda" * 200,
        jpeg_with(COMMENT * 1_000),
        png_with(chunk(b"prVt") * 256),
        png_with(chunk(b"IDAT") * 10_000),
    ],
    ids=[
        "100 scans",
        "markers in a comment",
        "film behind the picture",
        "comments",
        "metadata",
        "small data",
    ],
)
def test_decodes_unusual_but_harmless_structure(decoder, content):
    """What merely looks like too many parts, or is just within the limits, decodes."""
    assert decoder.decode(content).size == (40, 30)


def test_scans_cannot_hide_from_the_count(decoder):
    """Segments between scans, of any content, do not cover the scans behind them."""
    content = jpeg_with_scans(150)
    last = content.rindex(b"\xff\xda")
    disguise = b"\xff\xfe\0\4\xff\xd9" + b"\xff\x10\xff\xff"

    with pytest.raises(ImageTooLarge, match="more than 100 scans"):
        decoder.decode(content.replace(content[last:-2], disguise + content[last:-2]))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_decodes_only_the_first_frame_of_an_animation(decoder, file_format):
    """The first picture counts."""
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    buffer = BytesIO()
    frames[0].save(buffer, file_format, save_all=True, append_images=frames[1:], lossless=True)

    image = decoder.decode(buffer.getvalue())

    assert image.getpixel((20, 15)) == (255, 0, 0)


def test_refuses_too_many_bytes_without_opening():
    """A file larger than the limit is refused, whatever it holds."""
    decoder = ImageDecoder(max_bytes=10, max_pixels=MAX_PIXELS)

    with pytest.raises(ImageTooLarge, match="image has 11 bytes, limit 10"):
        decoder.decode(b"not an image"[:11])


def test_scales_16_bit_greyscale_to_8_bits(decoder):
    """A 16-bit picture keeps its tones: v / 257, rounded, where Pillow's conversion clips at 255."""
    values = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "PNG")

    pixels = np.asarray(decoder.decode(buffer.getvalue()))

    expected = (values.astype(np.int64) + 128) // 257
    np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*"])
def test_broken_metadata_leaves_the_picture(decoder, exif):
    """EXIF that cannot be read is ignored."""
    image = decoder.decode(encoded("JPEG", exif=exif))

    assert image.size == (40, 30)


def test_turns_a_picture_upright(decoder):
    """EXIF orientation 6 swaps the sides."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6

    assert decoder.decode(encoded("JPEG", exif=exif)).size == (30, 40)


@pytest.mark.parametrize("file_format", IMAGE_FORMATS)
def test_damage_never_escapes_as_another_error(decoder, file_format):
    """Files with random damage decode or are refused; nothing else is raised."""
    rng = random.Random(file_format)
    original = encoded(file_format)
    outcomes = set()

    for _ in range(300):
        content = bytearray(original[: rng.choice([len(original), rng.randrange(len(original))])])
        for _ in range(rng.randrange(1, 6)):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            decoder.decode(bytes(content))
            outcomes.add("decoded")
        except (ImageUnreadable, ImageTooLarge) as error:
            outcomes.add(type(error).__name__)

    assert "ImageUnreadable" in outcomes


def test_pillow_prints_no_warning():
    """Images that Pillow would warn about leave the server's output clean."""
    program = (
        "import sys; from alignserve_server.model.decode import ImageDecoder\n"
        "ImageDecoder(max_bytes=1 << 30, max_pixels=1 << 40).decode(sys.stdin.buffer.read())"
    )
    palette = Image.linear_gradient("L").convert("P")
    buffer = BytesIO()
    palette.save(buffer, "PNG", transparency=bytes(range(256)), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")

    done = subprocess.run([sys.executable, "-c", program], input=buffer.getvalue(), capture_output=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
