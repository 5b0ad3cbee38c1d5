"""Writes log lines from a separate thread, so that a slow reader of the log cannot block the server."""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TextIO, TypeAlias

_MAX_LINES = 1000
_MAX_BYTES = 1 << 20
_FLUSH_IDLE_SECONDS = 1.0  # without progress, which means that no one reads the log
_FLUSH_SECONDS = 3.0  # for a reader that is merely slow
# The kernel writes this much to a pipe in one piece; with more, lines of several processes would mix. Several
# lines at once, since after each write the thread waits up to 5 ms for the interpreter lock.
_WRITE_BYTES = select.PIPE_BUF

Write: TypeAlias = Callable[[bytes], object]  # writes whole lines, or raises


@dataclass
class _Gap:
    """Marks the place of lines that did not fit."""

    lines: int


class LogWriter:
    """A bounded queue of lines, and the thread that writes them whole and in order.

    `put` never blocks. Lines that do not fit are dropped and counted; once the log is read again, a line in
    their place reports their number. Any thread may call it, including a finalizer that the garbage collector
    runs during another `put`.
    """

    def __init__(
        self,
        write: Write,
        describe_gap: Callable[[int], bytes],
        *,
        max_lines: int = _MAX_LINES,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        """Does not start the thread yet; the first line does.

        Args:
            write: Writes lines; may block.
            describe_gap: Renders the line that reports a number of dropped lines.
            max_lines: Maximum number of waiting lines.
            max_bytes: Maximum number of waiting bytes.
        """
        self._write = write
        self._describe_gap = describe_gap
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._dropped = 0
        self._is_closed = False
        self._clear()
        _clear_after_fork(self)

    @property
    def dropped(self) -> int:
        """Number of lines that were lost because they did not fit or could not be written."""
        return self._dropped

    def put(self, line: bytes) -> None:
        """Queues a line, including its line break, or drops it."""
        with self._changed:
            if self._is_closed:
                self._dropped += 1
                return
            size = len(line)
            if self._lines < self._max_lines and self._bytes + size <= self._max_bytes:
                self._queue.append(line)
                self._lines += 1
                self._bytes += size
            else:
                self._drop()
            self._start()
            self._changed.notify_all()

    def flush(self, idle_seconds: float = _FLUSH_IDLE_SECONDS, seconds: float = _FLUSH_SECONDS) -> bool:
        """Waits until everything is written.

        Args:
            idle_seconds: Gives up after this long without progress.
            seconds: Gives up after this long in any case.

        Returns:
            Whether everything was written.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while self._queue or self._is_writing:
                if not self._makes_progress(min(idle_seconds, end - time.monotonic())):
                    return False
        return True

    def close(self) -> None:
        """Accepts no more lines, and ends the thread once it has written those in the queue."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _clear(self) -> None:
        # A reentrant lock: a finalizer that logs may run while this thread holds the lock.
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[bytes | _Gap] = deque()
        self._lines = self._bytes = 0
        self._thread: threading.Thread | None = None
        self._is_writing = False
        self._taken = 0

    def _drop(self) -> None:
        self._dropped += 1
        last = self._queue[-1] if self._queue else None
        if isinstance(last, _Gap):
            last.lines += 1
        else:
            self._queue.append(_Gap(1))

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # too many threads; the next line tries again
                return
            self._thread = thread

    def _makes_progress(self, seconds: float) -> bool:
        taken = self._taken
        return self._changed.wait_for(
            lambda: self._taken != taken or not (self._queue or self._is_writing), seconds
        )

    def _run(self) -> None:
        unreported = 0
        while (batch := self._take()) is not None:
            gap, lines = batch
            unreported += gap
            try:
                if unreported:
                    self._write(self._describe_gap(unreported))
                    unreported = 0
                self._write(b"".join(lines))
            except Exception:  # noqa: BLE001 — it cannot be logged, and later lines may succeed
                lost = len(lines)
                unreported += lost
                with self._changed:
                    self._dropped += lost

    def _take(self) -> tuple[int, list[bytes]] | None:
        """Waits for output; returns the length of the gap before it, and the lines. None at the end."""
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue or self._is_closed)
            if not self._queue:
                return None
            self._is_writing = True
            self._taken += 1
            gap = 0
            if isinstance(first := self._queue[0], _Gap):
                self._queue.popleft()
                gap = first.lines
            return gap, list(self._next_lines())

    def _next_lines(self) -> Iterator[bytes]:
        total = 0
        while self._queue and not isinstance(line := self._queue[0], _Gap):
            size = len(line)
            total += size
            if total > max(_WRITE_BYTES, size):
                return
            self._queue.popleft()
            self._lines -= 1
            self._bytes -= size
            yield line


def writing_to(stream: TextIO) -> Write:
    """Returns a function that writes to a stream without its buffer, which a blocked `print` would lock."""
    try:
        return _DescriptorWriter(os.dup(stream.fileno()))
    except OSError:  # it has no descriptor, for example in a test
        return lambda line: _write_text(stream, line)


class _DescriptorWriter:
    """Writes whole lines to a descriptor, even in non-blocking mode."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_torn = False
        weakref.finalize(self, os.close, descriptor).atexit = False

    def __call__(self, lines: bytes) -> None:
        rest = memoryview(b"\n" + lines if self._is_torn else lines)
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except BlockingIOError:  # a process that shares the pipe or terminal can switch its mode
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
                continue
            rest = rest[written:]
            self._is_torn = bool(rest)  # if the rest fails, as on a full disk, a new line follows


def _write_text(stream: TextIO, line: bytes) -> None:
    stream.write(line.decode())
    stream.flush()


def _clear_after_fork(writer: LogWriter) -> None:
    """Resets the writer in a forked child, which lacks the thread; the parent writes the queued lines."""
    weakly = weakref.ref(writer)

    def clear() -> None:
        if (found := weakly()) is not None:
            found._clear()

    os.register_at_fork(after_in_child=clear)
