"""A driver's process: requests in, answers out, and no driver can hang or mislead the harness."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HELLO_SECONDS = 60.0
_END_SECONDS = 10.0
_KEPT_LINES = 40  # of standard error
_OUTCOMES = frozenset({"ok", "error", "unsupported"})


class DriverError(Exception):
    """The driver broke the protocol: it hung, ended, or wrote something else; the message says which."""


class Driver:
    """One driver, running. Use it in a `with` statement; the process is gone afterwards.

    Attributes:
        hello: What the driver said of itself: language, library, versions.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts the process; raises `DriverError` if it does not answer `hello`."""
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._answers: queue.Queue[bytes | None] = queue.Queue()  # None at the end of the output
        self._number = 0
        try:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # so that its children end with it
            )
        except OSError as error:
            raise DriverError(f"cannot start {command[0]}: {error}") from error
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._read, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()
        try:
            self.hello = self._hello()
        except DriverError:
            self.kill()
            raise

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_alive(self) -> bool:
        """Whether the process can still be asked."""
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Sends a request and returns its answer, without the id.

        Raises:
            DriverError: There is no valid answer within the time. The process is then killed.
        """
        self.begin(request)
        return self.end(seconds)

    def begin(self, request: Mapping[str, Any]) -> None:
        """Sends a request without waiting for its answer."""
        self._number += 1
        line = json.dumps({"id": self._number, **request}) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except OSError as error:
            raise self._failed(f"does not read its input: {error}") from error

    def progress(self, count: int, seconds: float) -> int:
        """Waits until the request in progress has reported `count` results; returns how many it has."""
        deadline = time.monotonic() + seconds
        while True:
            message = self._next(deadline, f"{count} results")
            if (done := message.get("progress")) is None:
                raise self._failed(f"answered before it reported {count} results: {_short(message)}")
            if done >= count:
                return int(done)

    def end(self, seconds: float) -> dict[str, Any]:
        """Waits for the answer of the request in progress, and returns it without the id."""
        deadline = time.monotonic() + seconds
        while "progress" in (message := self._next(deadline, "an answer")):
            pass
        if len(_OUTCOMES & set(message)) != 1:
            raise self._failed(f"answered with none or several of ok, error, unsupported: {_short(message)}")
        del message["id"]
        return message

    def stop(self) -> None:
        """Ends the input, and kills the process if it does not end then.

        Raises:
            DriverError: It did not end, or not with 0.
        """
        if self._process.poll() is not None:
            self.kill()
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise self._failed(f"runs {_END_SECONDS:g} s after the end of its input") from None
        finally:
            self.kill()
        if code:
            raise self._failed(f"ended with code {code}")

    def kill(self) -> None:
        """Ends the process and its children at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with suppress(OSError):
                if stream is self._process.stdin:
                    stream.close()
        for thread in self._threads:
            thread.join(_END_SECONDS)

    def _hello(self) -> dict[str, Any]:
        answer = self.ask({"op": "hello"}, HELLO_SECONDS)
        hello = answer.get("ok")
        if not isinstance(hello, dict) or not {"language", "library", "versions"} <= set(hello):
            raise self._failed(f"answered hello with {_short(answer)}")
        return hello

    def _next(self, deadline: float, wanted: str) -> dict[str, Any]:
        seconds = max(0.0, deadline - time.monotonic())
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise self._failed(f"gave no sign of {wanted} in time") from None
        if line is None:
            raise self._failed(f"ended with code {self._process.wait()}")
        try:
            message = json.loads(line)
        except ValueError:
            raise self._failed(f"wrote what is not JSON: {_short(line)}") from None
        if not isinstance(message, dict) or message.get("id") != self._number:
            raise self._failed(f"answered something else than request {self._number}: {_short(message)}")
        return message

    def _failed(self, what: str) -> DriverError:
        self.kill()
        errors = "".join(f"\n    {line}" for line in self._errors)
        return DriverError(
            f"the driver {what}" + (f"; its standard error ends with:{errors}" if errors else "")
        )

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr:
            for line in self._process.stderr:
                self._errors.append(line.decode(errors="replace").rstrip())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]} …"
