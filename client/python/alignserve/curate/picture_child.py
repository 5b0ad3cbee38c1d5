"""One process that decodes pictures for `pictures`: runs by its path, until its socket closes.

It imports Pillow and numpy, and nothing of this package: a replacement starts in a fraction of a second, with
little memory. Both sides exchange a length and JSON, so that the caller unpickles nothing from a process that an
untrusted file may have compromised.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

LENGTH = struct.Struct(">I")

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {  # EXIF orientation to the operation that undoes it; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TO_8_BITS = [(value + 128) // 257 for value in range(1 << 16)]  # value / 257, rounded

_SIDE = 32  # of the picture that is transformed
_FREQUENCIES = 8  # in each direction; their product is the number of bits
_MIN_SIDE = 8  # a smaller picture has fewer pixels than the hash has bits
_WAVES: NDArray[np.float64] = np.cos(  # (8, 32): the DCT-II's lowest frequencies
    np.pi / (2 * _SIDE) * np.outer(np.arange(_FREQUENCIES), 2 * np.arange(_SIDE) + 1)
)
# The grey levels of the small picture are rounded, with a standard deviation of 0.29; in a frequency, whose
# squared waves sum to 16 in each direction, that is 4.6. This is 3.5 times as much.
_NOISE = 16.0

_JPEG_QUALITY = 75  # of thumbnails


class _Refused(Exception):
    """This picture has no result: a reason for programs, and a message for people."""


def perceptual_hash(grey: Image.Image) -> str | None:
    """Returns the 64-bit DCT hash in hexadecimal, or `None` if the picture is too small or too plain for one.

    These are the bits of `imagehash.phash`: the picture is resized to 32 by 32 pixels with Lanczos, and each bit
    says whether one of the 8 by 8 lowest frequencies of its cosine transform is above their median. In a plain
    area, or a linear gradient, most frequencies are nothing but rounding noise. Such pictures would have equal
    or random hashes, so they have none.

    Args:
        grey: The upright picture in mode `L`.
    """
    if min(grey.size) < _MIN_SIDE:
        return None
    pixels = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    frequencies = _WAVES @ pixels @ _WAVES.T
    above = frequencies - np.median(frequencies)
    if np.count_nonzero(np.abs(above) > _NOISE) < above.size // 2:
        return None
    return np.packbits(above > 0).tobytes().hex()


def main(descriptor: int, settings: Mapping[str, Any]) -> None:
    """Answers one picture after another."""
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rwb") as stream:
        _prepare(settings)
        _send(stream, {"event": "ready"})
        _silence()
        while header := stream.read(LENGTH.size):
            job = json.loads(stream.read(*LENGTH.unpack(header)))
            signal.setitimer(signal.ITIMER_PROF, settings["max_cpu_seconds"])
            signal.setitimer(signal.ITIMER_REAL, settings["max_seconds"])
            answer = _answer(stream.read(job.get("bytes", 0)), job, settings)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(stream, answer)


def _prepare(settings: Mapping[str, Any]) -> None:
    # Both timers end this process, whatever it is doing; the caller may have passed on other settings.
    timers = {signal.SIGPROF, signal.SIGALRM}
    for number in timers:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, timers)
    Image.init()  # otherwise the first unknown file imports all plugins, within its limits
    with suppress(ImportError, AttributeError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # other processes decode other pictures
    Image.MAX_IMAGE_PIXELS = settings["max_pixels"]  # Pillow also checks a GIF's frame before it fills it
    warnings.simplefilter("ignore")  # about corrupt metadata
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # not Linux: there the limit is only on pixels
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + settings["max_memory_bytes"]
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == -1 else min(limit, hard), hard))


def _silence() -> None:
    """Keeps messages of decoder libraries about untrusted files off the terminal."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stderr.fileno())
    os.close(nowhere)


def _send(stream: Any, answer: Mapping[str, Any]) -> None:
    data = json.dumps(answer).encode()
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def _answer(content: bytes, job: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if "path" in job:
            content = _read(bytes.fromhex(job["path"]), settings["max_bytes"])
        _check_length(len(content), settings["max_bytes"])
        with Image.open(BytesIO(content), formats=settings["formats"]) as image:
            _check_size(*image.size, settings)
            if "thumbnail" in job:
                return _thumbnail(image, job["thumbnail"])
            return _measured(image, content, settings)
    except _Refused as refused:
        reason, message = refused.args
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = "IMAGE_TOO_LARGE"
        message = f"image claims more than {settings['max_pixels']} pixels, the limit"
    except UnidentifiedImageError:
        reason = "IMAGE_UNREADABLE"
        message = f"image is not one of {', '.join(settings['formats'])}, or its header is broken"
    except Exception as error:  # noqa: BLE001 — decoders raise far more than OSError on corrupt files
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            reason = "DECODER_OUT_OF_MEMORY"
            message = f"decoding the image needs more than {settings['max_memory_bytes']} bytes, the limit"
        else:
            reason, message = "IMAGE_UNREADABLE", "image is broken or incomplete; it does not decode"
    return {"failure": reason, "message": message}


def _read(path: bytes, max_bytes: int) -> bytes:
    """Reads a regular file; others, such as named pipes, could block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 — it has a descriptor
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise _Refused("IMAGE_FILE_UNREADABLE", "image is not a regular file")
            _check_length(found.st_size, max_bytes)
            return file.read(max_bytes + 1)
    except OSError as error:
        raise _Refused("IMAGE_FILE_UNREADABLE", f"image file cannot be read: {error.strerror}") from None


def _check_length(length: int, max_bytes: int) -> None:
    if not length:
        raise _Refused("IMAGE_UNREADABLE", "image is empty")
    if length > max_bytes:
        raise _Refused("IMAGE_TOO_LARGE", f"image has {length} bytes, limit {max_bytes}")


def _check_size(width: int, height: int, settings: Mapping[str, Any]) -> None:
    if width * height > settings["max_pixels"]:
        raise _Refused(
            "IMAGE_TOO_LARGE",
            f"image has {width} x {height} = {width * height} pixels, limit {settings['max_pixels']}",
        )
    if max(width, height) > settings["max_side"]:
        side = max(width, height)
        raise _Refused("IMAGE_TOO_LARGE", f"image has a side of {side} pixels, limit {settings['max_side']}")


def _measured(image: ImageFile.ImageFile, content: bytes, settings: Mapping[str, Any]) -> dict[str, Any]:
    image.load()
    _check_size(*image.size, settings)  # some decoders find the real size only now
    grey = _upright(_grey(image), image)
    return {
        "width": grey.width,
        "height": grey.height,
        "byte_count": len(content),
        # A phone's JPEG with further pictures in it is MPO to Pillow; the first picture is an ordinary one.
        "format": "JPEG" if image.format == "MPO" else image.format,
        "phash": perceptual_hash(grey),
        "digest": hashlib.blake2b(content, digest_size=16).hexdigest(),
    }


def _thumbnail(image: ImageFile.ImageFile, side: int) -> dict[str, Any]:
    if image.format == "JPEG":
        image.draft("RGB", (2 * side, 2 * side))  # decodes at a fraction of the size
    image.load()
    if image.mode.startswith("I;16"):
        small = _grey(image)
    else:
        image.info.pop("transparency", None)
        small = image.convert("RGB")
    small.thumbnail((side, side))
    file = BytesIO()
    _upright(small, image).save(file, "JPEG", quality=_JPEG_QUALITY)
    return {"jpeg": base64.b64encode(file.getvalue()).decode()}


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # converting it to L would clip at 255
        return image.convert("I").point(_TO_8_BITS, "L")
    image.info.pop("transparency", None)  # alpha is dropped; converting it can fail
    return image.convert("L")


def _upright(picture: Image.Image, image: Image.Image) -> Image.Image:
    """Applies the orientation of the file's EXIF, unless that is corrupt."""
    orientation = None
    with suppress(Exception):  # any: EXIF is parsed by Pillow, and can be as corrupt as pixels
        orientation = image.getexif().get(_ORIENTATION)
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
