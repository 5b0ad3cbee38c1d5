"""Image preprocessing in separate processes, where holding the GIL does not delay this process.

Both sides exchange lines of JSON, each followed by a number of bytes that both sides know. Nothing is
unpickled: an untrusted file may have compromised the decoder in the other process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import IO, Any

import numpy as np

from alignserve_server.errors import ImageTooLarge, ImageUnreadable, InvalidArgument
from alignserve_server.model.encoder import PixelValues
from alignserve_server.model.preprocessing.image_files import Picture

# For one image, after which the process is killed. The slowest images within the limits take a twentieth.
MAX_SECONDS = 60

_PROGRAM = "alignserve_server.model.preprocessing.child"
_REFUSALS: Mapping[str, type[InvalidArgument]] = {
    error.reason: error for error in (ImageTooLarge, ImageUnreadable)
}


class PreprocessProcesses:
    """A pool of one process per concurrent thread; each is started when first needed, and then kept.

    The processes end with this object, or with the parent process.
    """

    def __init__(self, settings: Mapping[str, Any], output_size: tuple[int, int]) -> None:
        """Creates the pool without starting a process.

        Args:
            settings: The preprocessor's configuration for `child`.
            output_size: (height, width) of every result.
        """
        self._settings = settings
        self._output_size = output_size
        self._idle: list[_Process] = []
        weakref.finalize(self, _end_all, self._idle)

    def __call__(self, picture: Picture) -> PixelValues:
        """Runs `ImagePreprocessor.preprocess` on a picture in one of the processes.

        Raises:
            ImageUnreadable: As for `preprocess`, or the picture crashes the process.
            ImageTooLarge: As for `preprocess`, or the picture takes longer than `MAX_SECONDS`.
            OSError: No process can be started.
        """
        process = self._idle_process() or _Process(self._settings)
        answer = process.ask(picture, 3 * self._output_size[0] * self._output_size[1])
        if process.is_running:
            self._idle.append(process)
        if isinstance(answer, InvalidArgument):
            raise answer
        return np.frombuffer(answer, np.uint8).reshape(*self._output_size, 3)

    def _idle_process(self) -> _Process | None:
        while self._idle:
            try:
                process = self._idle.pop()
            except IndexError:  # another thread was faster
                return None
            if process.is_running:
                return process
            process.end()
        return None


class _Process:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 — a module of this package
            [sys.executable, "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "OPENBLAS_NUM_THREADS": "1",  # numpy's threads, which have no work here
                "PYTHONSAFEPATH": "1",  # do not import modules from the working folder
            },
            start_new_session=True,  # on Ctrl-C or a closed terminal, the server drains and still needs it
        )
        assert self._process.stdin is not None  # noqa: S101 — for the type checker; they are pipes
        assert self._process.stdout is not None  # noqa: S101 — as above
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        try:
            self._send(settings)
            is_ready = bool(self._from.readline())
        except OSError:
            is_ready = False
        if not is_ready:
            self.end()
            raise OSError(f"{_PROGRAM} exited at startup; its standard error says why")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def ask(self, picture: Picture, size: int) -> bytes | InvalidArgument:
        """Returns `size` bytes of pixels, or the refusal; also refuses the picture if the process dies."""
        try:
            self._send(
                {
                    field.name: getattr(picture, field.name)
                    for field in fields(picture)
                    if field.name != "content"
                }
                | {"bytes": len(picture.content)},
                picture.content,
            )
            answer = json.loads(self._from.readline())
            if refusal := _REFUSALS.get(answer.get("refusal", "")):
                return refusal(answer["message"])
            pixels = self._from.read(size)
        except (OSError, ValueError):  # a broken pipe, or half a line
            pixels = b""
        return pixels if len(pixels) == size else self._refusal_of_end()

    def end(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._from.close()
        with suppress(OSError):  # buffered data can no longer be sent
            self._to.close()
        self._process.wait()

    def _send(self, line: Mapping[str, Any], content: bytes = b"") -> None:
        self._to.write(json.dumps(line).encode() + b"\n")
        self._to.write(content)
        self._to.flush()

    def _refusal_of_end(self) -> InvalidArgument:
        self.end()
        if self._process.returncode == -signal.SIGALRM:
            return ImageTooLarge(f"image takes more than {MAX_SECONDS} s to decode, the limit; save it again")
        return ImageUnreadable("image crashes its decoder, or needs more memory than available")


def _end_all(processes: list[_Process]) -> None:
    for process in processes:
        process.end()
