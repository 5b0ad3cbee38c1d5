"""Untrusted bytes decode, or fail with an error that says what is wrong, without side effects."""

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
from alignserve_server.model.preprocessing.decode import IMAGE_FORMATS, ImageDecoder
from PIL import ExifTags, Image, ImageOps

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
def test_refuses_other_formats_and_incomplete_images(decoder, content):
    """Other formats, corrupt and incomplete files are refused, with our own messages."""
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
    """Exactly the pixel limit passes; one more pixel does not."""
    assert decoder.decode(encoded("PNG", (MAX_PIXELS // 2, 2))).height == 2

    with pytest.raises(ImageTooLarge, match="image has 9091 x 11 = 100001 pixels, limit 100000"):
        decoder.decode(encoded("PNG", (9091, 11)))


@pytest.mark.parametrize(
    ("size", "message"), [((65_536, 1), "width of 65536"), ((1, 65_536), "height of 65536")]
)
def test_refuses_a_side_that_is_too_long(decoder, size, message):
    """A thin picture, which needs much memory to resize, is refused; the error names the long side."""
    with pytest.raises(ImageTooLarge, match=f"image has a {message}, limit 65535;"):
        decoder.decode(png_header(*size))


def test_decodes_the_longest_side(decoder):
    """A side of exactly the limit decodes."""
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
    """Files just within the limits, or with data that only looks like parts, decode."""
    assert decoder.decode(content).size == (40, 30)


def test_scans_cannot_hide_from_the_count(decoder):
    """Segments between scans, with any content, do not hide later scans."""
    content = jpeg_with_scans(150)
    last = content.rindex(b"\xff\xda")
    disguise = b"\xff\xfe\0\4\xff\xd9" + b"\xff\x10\xff\xff"

    with pytest.raises(ImageTooLarge, match="more than 100 scans"):
        decoder.decode(content.replace(content[last:-2], disguise + content[last:-2]))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_decodes_only_the_first_frame_of_an_animation(decoder, file_format):
    """The first of several pictures is used."""
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    buffer = BytesIO()
    frames[0].save(buffer, file_format, save_all=True, append_images=frames[1:], lossless=True)

    image = decoder.decode(buffer.getvalue())

    assert image.getpixel((20, 15)) == (255, 0, 0)


def test_refuses_too_many_bytes_without_opening():
    """A file larger than the limit is refused, whatever its content."""
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
        "import sys; from alignserve_server.model.preprocessing.decode import ImageDecoder\n"
        "ImageDecoder(max_bytes=1 << 30, max_pixels=1 << 40).decode(sys.stdin.buffer.read())"
    )
    palette = Image.linear_gradient("L").convert("P")
    buffer = BytesIO()
    palette.save(buffer, "PNG", transparency=bytes(range(256)), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")

    done = subprocess.run([sys.executable, "-c", program], input=buffer.getvalue(), capture_output=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def pixels_of(content: bytes) -> np.ndarray:
    """Returns the result of transformers' `load_image` for an intact file."""
    with Image.open(BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def with_wrong_checksum(chunk: bytes) -> bytes:
    """A chunk of a PNG whose checksum is wrong."""
    return chunk[:-4] + bytes(byte ^ 0xFF for byte in chunk[-4:])


def gif_with(extensions: bytes) -> bytes:
    """A GIF with more before its first frame."""
    content = encoded("GIF")
    start = 13 + (3 << (content[10] & 7) + 1)
    return content[:start] + extensions + content[start:]


def webp_with(flags: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A WEBP with more data after its picture."""
    body = b"WEBP" + riff(b"VP8X", bytes([flags, 0, 0, 0, 39, 0, 0, 29, 0, 0])) + encoded("WEBP")[12:]
    body += b"".join(riff(kind, data) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff(kind: bytes, data: bytes) -> bytes:
    """A chunk of a WEBP."""
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def exif(orientation: int) -> bytes:
    """EXIF without the prefix that JPEG adds."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, ExifTags.Base.Orientation, 3, 1, orientation, 0, 0)


def webp_animation(*frames: bytes) -> bytes:
    """A WEBP of lossless frames; a frame without bytes has a header but no picture."""
    edges = struct.pack("<I", 39)[:3] + struct.pack("<I", 29)[:3]
    body = b"WEBP" + riff(b"VP8X", bytes([2, 0, 0, 0]) + edges) + riff(b"ANIM", bytes(6))
    body += b"".join(riff(b"ANMF", bytes(6) + edges + bytes(4) + frame) for frame in frames)
    return b"RIFF" + struct.pack("<I", len(body)) + body


BROKEN_METADATA = {
    "png, text that inflates to 3 MB": png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20)))),
    "png, many large texts": png_with(chunk(b"tEXt", b"a\0" + bytes(500_000)) * 2),
    **{
        f"png, {kind.decode()}, {name}, {place}": png_with(broken, before=before)
        for kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"eXIf")
        for name, broken in {
            "wrong checksum": with_wrong_checksum(chunk(kind, b"a\0\0" + bytes(40))),
            "too short": chunk(kind, b""),
            "of another method": chunk(kind, b"a\0\7" + bytes(40)),
        }.items()
        for place, before in {"before": b"IDAT", "behind": b"IEND"}.items()
    },
    "png, a chunk with digits in its name": png_with(chunk(b"aB1_")),
    "png, tRNS, too short": png_with(chunk(b"tRNS", b"")),
    "png, animation without order": png_with(chunk(b"acTL", bytes(7)) + chunk(b"fcTL", bytes(26))),
    "png, text that names a field of Pillow's": png_with(chunk(b"tEXt", b"interlace\x001")),
    "jpeg, profile without its number": jpeg_with(segment(0xE2, b"ICC_PROFILE\0")),
    "jpeg, photoshop cut off": jpeg_with(segment(0xED, b"Photoshop 3.0\x008BIM")),
    "jpeg, several pictures, no list of them": jpeg_with(segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff")),
    "jpeg, junk behind a profile": jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1a") + b"junk"),
    "jpeg, EXIF in name only": jpeg_with(segment(0xE1, b"Exif\0\0") * 3),
    "gif, empty extension": gif_with(b"!\x01\0!\xfe\0"),
    "gif, control too short": gif_with(b"!\xf9\1\1\0"),
    "gif, application of one byte": gif_with(b"!\xff\1N\0"),
    "webp, EXIF and XMP of nothing": webp_with(12, (b"EXIF", b"\xff"), (b"XMP ", b"\xff" * 3)),
    "webp, metadata without notice": webp_with(0, (b"EXIF", exif(6)), (b"ICCP", b"")),
    "bmp, junk behind": encoded("BMP") + b"junk" * 99,
}


@pytest.mark.parametrize("content", BROKEN_METADATA.values(), ids=BROKEN_METADATA.keys())
def test_a_picture_with_broken_metadata_decodes_like_one_without(decoder, content):
    """Errors in data that does not affect pixels are ignored, wherever they are."""
    formats = {b"\x89P": "PNG", b"\xff\xd8": "JPEG", b"GI": "GIF", b"RI": "WEBP", b"BM": "BMP"}

    image = decoder.decode(content)

    np.testing.assert_array_equal(np.asarray(image), pixels_of(encoded(formats[content[:2]])))


def test_a_frame_without_a_picture_is_skipped(decoder):
    """The first frame with a picture is used."""
    content = webp_animation(b"", encoded("WEBP", lossless=True)[12:])

    np.testing.assert_array_equal(np.asarray(decoder.decode(content)), pixels_of(content))


def test_a_lossless_stream_may_go_on_in_the_padding(decoder):
    """The padding byte of an odd chunk is kept, since libwebp reads it."""
    content = bytearray(encoded("WEBP", lossless=True))
    (length,) = struct.unpack_from("<I", content, 16)
    assert length % 2 == 0
    struct.pack_into("<I", content, 16, length - 1)

    np.testing.assert_array_equal(np.asarray(decoder.decode(bytes(content))), pixels_of(bytes(content)))


@pytest.mark.parametrize(
    "extension", [b"!\xff\x0bNETSCAPE2.0\0", b"!\xf9\0"], ids=["no loop count", "no control"]
)
def test_the_first_frame_is_the_first_in_the_file(decoder, extension):
    """A frame counts even after a short extension, beyond whose end Pillow would read."""
    first, second = (Image.new("RGB", (40, 30), color) for color in ("red", "blue"))
    buffer = BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    content = buffer.getvalue()
    start = 13 + (3 << (content[10] & 7) + 1)

    image = decoder.decode(content[:start] + extension + content[start:])

    assert image.getpixel((20, 15)) == (255, 0, 0)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
TURNED = {
    "png, EXIF behind the data": png_with(chunk(b"eXIf", exif(6)), before=b"IEND"),
    "png, the last EXIF": png_with(chunk(b"eXIf", exif(3)) + chunk(b"eXIf", exif(6))),
    "png, EXIF in hexadecimal": png_with(
        chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 38\n" + exif(6).hex().encode())
        )
    ),
    "png, XMP": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "png, XMP inflated": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
    "jpeg, EXIF in two segments": jpeg_with(
        segment(0xE1, b"Exif\0\0" + exif(6)[:17]) + segment(0xE1, b"Exif\0\0" + exif(6)[17:])
    ),
    "jpeg, XMP": jpeg_with(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
    "webp, EXIF": webp_with(8, (b"EXIF", exif(6))),
    "webp, XMP": webp_with(4, (b"XMP ", XMP)),
}


@pytest.mark.parametrize("content", TURNED.values(), ids=TURNED.keys())
def test_finds_the_orientation_where_pillow_does(decoder, content):
    """Orientation is read from EXIF and XMP, wherever a format allows them."""
    image = decoder.decode(content)

    assert image.size == (30, 40)
    np.testing.assert_array_equal(np.asarray(image), pixels_of(content))


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_a_critical_chunk_needs_its_checksum(decoder, kind):
    """A chunk that affects pixels is refused if its checksum is wrong, unlike metadata."""
    buffer = BytesIO()
    Image.linear_gradient("L").convert("P", palette=Image.Palette.ADAPTIVE).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    start = content.index(kind)
    content[start + 4 + struct.unpack_from(">I", content, start - 4)[0]] ^= 1

    with pytest.raises(ImageUnreadable):
        decoder.decode(bytes(content))


def bmp_of_runs(runs: bytes, size: tuple[int, int], bits: int) -> bytes:
    """A BMP with run-length encoded pixels."""
    colours = 1 << bits
    palette = bytes(value * 37 % 256 for value in range(4 * colours))
    header = struct.pack("<IiiHHIIIIII", 40, *size, 1, bits, 1 if bits == 8 else 2, 0, 1, 1, colours, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs


@pytest.mark.parametrize("bits", [4, 8])
def test_expands_runs_as_pillow_does(decoder, bits):
    """Any sequence of runs, pixels, line ends and jumps, complete or not, decodes as in Pillow, or fails."""
    rng = random.Random(bits)
    outcomes = set()

    for _ in range(300):
        size = rng.randint(1, 40), rng.choice([-1, 1]) * rng.randint(1, 20)
        runs = bytearray()
        for _ in range(rng.randint(0, 120)):
            count = rng.choice([0, 0, rng.randint(1, 255), rng.randint(1, 9)])
            value = rng.choice([0, 0, 2, rng.randint(3, 20)]) if not count else rng.randrange(256)
            runs += bytes([count, value])
            if not count and value > 1:
                runs += rng.randbytes(2 if value == 2 else (value + 1) // 2 if bits == 4 else value)
                runs += bytes(rng.random() < 0.9 and len(runs) % 2)
        content = bmp_of_runs(bytes(runs) + b"\0\0\0\1", size, bits)
        try:
            expected = pixels_of(content)
        except ValueError:
            with pytest.raises(ImageUnreadable):
                decoder.decode(content)
            outcomes.add("refused")
        else:
            np.testing.assert_array_equal(np.asarray(decoder.decode(content)), expected)
            outcomes.add("decoded")

    assert outcomes == {"decoded", "refused"}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (jpeg_with(segment(0xC0, struct.pack(">BHHB", 8, 30, 40, 3) + b"\1\x11\0" * 3)), ImageUnreadable),
        (jpeg_with(segment(0xDB, (b"\0" + b"\1" * 64) * 1000)), ImageTooLarge),
        (jpeg_with(b"\xff\xdd\0\4\0\0" * 2000), ImageTooLarge),
        (png_with(chunk(b"PLTE", bytes(9)) * 300), ImageTooLarge),
        (png_with(chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 30, 8, 2, 0, 0, 0))), ImageUnreadable),
        (gif_with(b"!\xfe" + b"\1a" * 40_000 + b"\0"), ImageTooLarge),
        (gif_with(b"x" * 40_000), ImageTooLarge),
        (webp_with(0, *[(b"junk", b"")] * 40_000), ImageTooLarge),
    ],
    ids=[
        *("jpeg, two sizes", "jpeg, quantization tables", "jpeg, other tables", "png, palettes"),
        *("png, two headers", "gif, blocks", "gif, junk", "webp, chunks"),
    ],
)
def test_refuses_parts_that_pillow_would_walk_in_python(decoder, content, error):
    """Every kind of part is limited to a number, or to one."""
    with pytest.raises(error):
        decoder.decode(content)


@pytest.mark.parametrize("content", [encoded("PNG")[:-40], b"GIF89a", encoded("JPEG")[:-200]])
def test_an_error_keeps_nothing_of_the_image(decoder, content):
    """The error has no context, whose traceback would keep pixels or bytes in memory."""
    with pytest.raises(ImageUnreadable) as caught:
        decoder.decode(content)

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_pillows_own_limit_is_the_second_line(decoder):
    """Pillow's own limit is on, and is high enough for every decoder in the process."""
    ImageDecoder(max_bytes=1, max_pixels=1 << 40)

    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS >= 1 << 40
