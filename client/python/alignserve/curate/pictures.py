"""Measures pictures in child processes under limits, so that no file can crash, fill or stall the caller."""

from __future__ import annotations

import base64
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from alignserve.datasets.row import RowFailure

__all__ = ["Limits", "Picture", "PictureProcesses", "measure"]

Image: TypeAlias = bytes | Path

# Deliberately few: every decoder is more code that untrusted bytes reach. Pillow's other readers include one
# that starts Ghostscript.
_FORMATS = frozenset({"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP"})
_PROGRAM = Path(__file__).with_name("picture_child.py")

_IN_FLIGHT = 4  # pictures per process, so that a slow one does not stop the others
_START_SECONDS = 120.0
_MARGIN_SECONDS = 10.0  # the child's own timer comes first
_MAX_ANSWER_BYTES = 1 << 20

_REFUSALS = frozenset(  # reasons that a child gives; the others are found from its end
    {"DECODER_OUT_OF_MEMORY", "IMAGE_FILE_UNREADABLE", "IMAGE_TOO_LARGE", "IMAGE_UNREADABLE"}
)
_TYPES: Mapping[str, type] = {"width": int, "height": int, "byte_count": int, "format": str, "digest": str}
_HASH = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one picture may cost; a picture beyond a limit is a failed row.

    Attributes:
        max_bytes: Of its file.
        max_pixels: Width times height, checked before pixels are decoded.
        max_side: Of the longer side, in pixels.
        max_memory_bytes: By which decoding may enlarge the address space of its process; only on Linux.
        max_cpu_seconds: CPU time to decode it.
        max_seconds: Time to read and decode it.
        formats: That are read, of AVIF, BMP, GIF, JPEG, JPEG2000, PNG, TIFF and WEBP.
    """

    max_bytes: int = 50_000_000
    max_pixels: int = 50_000_000
    max_side: int = 65_535
    max_memory_bytes: int = 1 << 30
    max_cpu_seconds: float = 20.0
    max_seconds: float = 60.0
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

    def __post_init__(self) -> None:
        """Raises ValueError if a format is not one of those above."""
        if unknown := sorted(set(self.formats) - _FORMATS):
            raise ValueError(f"format {unknown[0]!r} is not one of {', '.join(sorted(_FORMATS))}")


@dataclass(frozen=True, slots=True)
class Picture:
    """The measures of a picture.

    Attributes:
        width: In pixels, of the picture as it is shown: after the orientation in its EXIF.
        height: As for `width`.
        byte_count: Of its file.
        format: Pillow's name; a phone's JPEG with further pictures in it (MPO) is `JPEG`.
        phash: 64-bit perceptual hash of the upright picture, 16 hexadecimal digits; `None` if the picture is too
            small or too plain to have one.
        digest: Of the file's bytes, BLAKE2b with 128 bits in hexadecimal: equal files without a `phash` can be
            recognized by it.
    """

    width: int
    height: int
    byte_count: int
    format: str
    phash: str | None
    digest: str


class PictureProcesses:
    """A few processes that decode pictures, each started when first needed and replaced when it dies.

    They are new programs, not forks, so the caller may have threads and gRPC channels. They end with `close`,
    with this object, or with the caller, however it ends. POSIX only.
    """

    def __init__(
        self, limits: Limits | None = None, *, processes: int | None = None, _program: Path = _PROGRAM
    ) -> None:
        """Creates the pool without starting a process.

        Args:
            limits: Of each picture.
            processes: Default: the number of CPUs that this process may use, at most 8.
        """
        self.limits = limits or Limits()
        self.processes = processes or min(8, _cpu_count())
        self._program = _program
        self._idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        for _ in range(self.processes):
            self._idle.put(None)  # may be started
        self._running: set[_Process] = set()
        self._threads = ThreadPoolExecutor(self.processes, thread_name_prefix="pictures")
        self._end = weakref.finalize(self, _end_all, self._running, self._threads)

    def __enter__(self) -> PictureProcesses:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Ends the processes; pictures that are being decoded are abandoned."""
        self._end()

    def measure(self, images: Iterable[Image]) -> Iterator[Picture | RowFailure]:
        """Yields a result for each image, in order.

        Reads ahead by a few images for each process. If `images` raises, the results of the images before come
        first. A failed image has one of these reasons: `IMAGE_UNREADABLE`, `IMAGE_TOO_LARGE`,
        `IMAGE_FILE_UNREADABLE`, `DECODER_OUT_OF_MEMORY`, `DECODER_TIMED_OUT`, `DECODER_CRASHED`.

        Raises:
            OSError: No process can be started, which is not the fault of any image.
        """
        pending: deque[Future[Picture | RowFailure]] = deque()
        failure: Exception | None = None
        source = iter(images)
        try:
            while True:
                try:
                    pending.append(self._threads.submit(self._measure, next(source)))
                except StopIteration:
                    break
                except Exception as error:  # noqa: BLE001 — raised below, behind the results
                    failure = error
                    break
                if len(pending) >= _IN_FLIGHT * self.processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
        if failure is not None:
            raise failure

    def thumbnail(self, image: Image, side: int = 128) -> bytes | None:
        """Returns the picture as a small upright JPEG, or `None` if it cannot be decoded.

        Args:
            image: The bytes of an image file, or its path.
            side: Of the longer side of the result, in pixels, at most 512.
        """
        answer = self._threads.submit(self._ask, image, {"thumbnail": min(side, 512)}).result()
        if isinstance(answer, RowFailure):
            return None
        try:
            return base64.b64decode(answer["jpeg"], validate=True)
        except (KeyError, TypeError, ValueError):
            return None

    def _measure(self, image: Image) -> Picture | RowFailure:
        answer = self._ask(image, {})
        return answer if isinstance(answer, RowFailure) else _picture(answer)

    def _ask(self, image: Image, job: Mapping[str, Any]) -> dict[str, Any] | RowFailure:
        """Asks one of the processes, and a new one if it crashed: an earlier picture may have damaged it."""
        if isinstance(image, Path):
            content, job = b"", {**job, "path": os.fsencode(image.absolute()).hex()}
        elif len(image) > self.limits.max_bytes:
            return RowFailure(
                "IMAGE_TOO_LARGE", f"image has {len(image)} bytes, limit {self.limits.max_bytes}"
            )
        else:
            content, job = image, {**job, "bytes": len(image)}
        process = self._idle.get()
        try:
            is_new = process is None
            process = process or self._start()
            answer = process.ask(job, content)
            if isinstance(answer, RowFailure) and answer.reason == "DECODER_CRASHED" and not is_new:
                self._running.discard(process)
                process = self._start()
                answer = process.ask(job, content)
        finally:
            if process is not None and not process.is_usable:
                process.end()
                self._running.discard(process)
                process = None
            self._idle.put(process)
        return answer

    def _start(self) -> _Process:
        if not self._end.alive:
            raise OSError("these picture processes are closed")
        process = _Process(self.limits, self._program)
        self._running.add(process)
        if not self._end.alive:  # closed meanwhile, by another thread
            process.end()
        return process


def measure(
    images: Iterable[Image], limits: Limits | None = None, *, processes: int | None = None
) -> Iterator[Picture | RowFailure]:
    """Yields the measures of each image in order, or why it has none; see `PictureProcesses.measure`."""
    with PictureProcesses(limits, processes=processes) as pool:
        yield from pool.measure(images)


class _Process:
    def __init__(self, limits: Limits, program: Path) -> None:
        self._max_seconds = limits.max_seconds + _MARGIN_SECONDS
        self.is_usable = True
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 — a module of this package
                [sys.executable, "-P", str(program), str(theirs.fileno()), json.dumps(asdict(limits))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # it has no use for them
                start_new_session=True,  # on Ctrl-C the caller decides
            )
        try:
            self._receive(time.monotonic() + _START_SECONDS)
        except (OSError, ValueError):
            self.end()
            raise OSError(f"{program.name} exited at startup; its standard error says why") from None

    def ask(self, job: Mapping[str, Any], content: bytes) -> dict[str, Any] | RowFailure:
        """Returns the answer, or why there is none; the process may have died."""
        header = json.dumps(job).encode()
        deadline = time.monotonic() + self._max_seconds
        try:
            self._socket.settimeout(self._max_seconds)
            self._socket.sendall(len(header).to_bytes(4, "big") + header)
            self._socket.sendall(content)
            answer = self._receive(deadline)
        except TimeoutError:
            self.end()
            return _timed_out()
        except (OSError, ValueError):
            self.end()
            return self._cause_of_end()
        if "failure" not in answer:
            return answer
        failure = RowFailure(str(answer["failure"]), str(answer.get("message")))
        if failure.reason not in _REFUSALS:
            return _nonsense()
        self.is_usable = failure.reason != "DECODER_OUT_OF_MEMORY"  # what is left of the memory is unknown
        return failure

    def kill(self) -> None:
        """Kills the process, and wakes a thread that waits for its answer."""
        self.is_usable = False
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.kill()  # one that is dying already keeps its own exit code

    def end(self) -> None:
        """Kills the process and frees what it holds; no other thread may be using it."""
        self.kill()
        self._process.wait()
        self._socket.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        length = int.from_bytes(self._receive_bytes(4, deadline), "big")
        if length > _MAX_ANSWER_BYTES:
            raise ValueError("the answer is too long")
        answer = json.loads(self._receive_bytes(length, deadline))
        if not isinstance(answer, dict):
            raise ValueError("the answer is not an object")  # noqa: TRY004 — one error for all that is malformed
        return answer

    def _receive_bytes(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            part = self._socket.recv(count - len(data))
            if not part:
                raise OSError("the process closed its socket")
            data += part
        return bytes(data)

    def _cause_of_end(self) -> RowFailure:
        code = self._process.returncode
        if code in (-signal.SIGPROF, -signal.SIGALRM):
            return _timed_out()
        what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return RowFailure("DECODER_CRASHED", f"image crashes its decoder: {what}")


def _picture(answer: Mapping[str, Any]) -> Picture | RowFailure:
    """Returns the measures if they are well-formed: the process may be in the hands of a file."""
    phash = answer.get("phash")
    if any(type(answer.get(name)) is not kind for name, kind in _TYPES.items()):
        return _nonsense()
    if phash is not None and not (isinstance(phash, str) and _HASH.fullmatch(phash)):
        return _nonsense()
    return Picture(phash=phash, **{name: answer[name] for name in _TYPES})


def _timed_out() -> RowFailure:
    return RowFailure("DECODER_TIMED_OUT", "image takes longer to decode than the limit allows")


def _nonsense() -> RowFailure:
    return RowFailure("DECODER_CRASHED", "image makes its decoder answer nonsense")


def _cpu_count() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _end_all(running: set[_Process], threads: ThreadPoolExecutor) -> None:
    for process in list(running):
        process.kill()
    threads.shutdown(cancel_futures=True)  # they may be using the processes
    for process in list(running):
        process.end()
