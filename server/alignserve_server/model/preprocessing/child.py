"""One process of `PreprocessProcesses`: `python -m alignserve_server.model.preprocessing.child`.

It reads pictures from standard input and writes pixels to standard output, until standard input closes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import IO, Any

from alignserve_server.errors import ImageTooLarge, ImageUnreadable
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.image_files import Picture
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.model.preprocessing.processes import MAX_SECONDS

# A codec's own stream may claim a different size than its container. This is enough for any picture: six
# bytes per pixel for coefficients or planes, four each for decoded, rotated, converted and resized pixels,
# all twice.
_BYTES_PER_PIXEL = 48
_OTHER_BYTES = 64 << 20
_COPIES = 4  # of the file


def main() -> None:
    """Reads the configuration, and then one picture after another."""
    for number in (signal.SIGINT, signal.SIGTERM):  # systemd sends signals to all processes of a service
        signal.signal(number, signal.SIG_IGN)  # the server drains, and still needs this process
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    settings = json.loads(incoming.readline())
    decoder = ImageDecoder(max_bytes=settings["max_bytes"], max_pixels=settings["max_pixels"])
    preprocessor = ImagePreprocessor(settings["config"], decoder)
    _send(outgoing, {"event": "ready"})
    _silence()
    while line := incoming.readline():
        message = json.loads(line)
        picture = Picture(content=incoming.read(message.pop("bytes")), **message)
        signal.alarm(MAX_SECONDS)  # SIGALRM's default action ends the process, whatever it is doing
        answer, pixels = _preprocess(preprocessor, picture)
        signal.alarm(0)
        _send(outgoing, answer, pixels)


def _silence() -> None:
    """Keeps messages of decoder libraries about untrusted files out of the server's log."""
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 — only the descriptor is needed
        os.dup2(nowhere.fileno(), sys.stderr.fileno())


def _limit_memory(growth: int) -> None:
    """Makes allocations fail once this process has grown by this many bytes."""
    try:
        data_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    except OSError:  # not Linux; elsewhere the limit has another meaning
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data_pages * resource.getpagesize() + growth
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _preprocess(preprocessor: ImagePreprocessor, picture: Picture) -> tuple[dict[str, Any], bytes]:
    pixel_bytes = _BYTES_PER_PIXEL * preprocessor.peak_pixels(picture)
    _limit_memory(pixel_bytes + _COPIES * len(picture.content) + _OTHER_BYTES)
    try:
        return {}, preprocessor.preprocess(picture).tobytes()
    except (ImageTooLarge, ImageUnreadable) as error:
        return {"refusal": error.reason, "message": error.message}, b""


def _send(outgoing: IO[bytes], line: dict[str, Any], content: bytes = b"") -> None:
    outgoing.write(json.dumps(line).encode() + b"\n" + content)
    outgoing.flush()


if __name__ == "__main__":
    main()
