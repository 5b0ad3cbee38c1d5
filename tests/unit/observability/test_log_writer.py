"""A thread writes log lines from a queue, so that nothing waits for the reader of the log."""

from __future__ import annotations

import fcntl
import os
import threading
import warnings
from collections.abc import Iterator

import pytest
from alignserve_server.observability.log_writer import LogWriter, writing_to


def _describe(lines: int) -> bytes:
    return b"%d dropped\n" % lines


class Stream:
    """A stream that blocks until `read` is set."""

    def __init__(self) -> None:
        self.read = threading.Event()
        self.is_reached = threading.Event()
        self.text = b""
        self.errors: list[OSError] = []

    def write(self, lines: bytes) -> None:
        self.is_reached.set()
        self.read.wait()
        if self.errors:
            raise self.errors.pop()
        self.text += lines


@pytest.fixture
def stream() -> Iterator[Stream]:
    """A stream that is unblocked after the test, so that its writer ends."""
    stream = Stream()
    yield stream
    stream.read.set()


def _stuck_writer(stream: Stream, **limits: int) -> LogWriter:
    """Returns a writer whose thread is blocked on its first line."""
    writer = LogWriter(stream.write, _describe, **limits)
    writer.put(b"first\n")
    stream.is_reached.wait()
    return writer


def test_lines_that_do_not_fit_are_counted_and_reported_in_their_place(stream: Stream) -> None:
    """The lines before and after them are written in order."""
    writer = _stuck_writer(stream, max_lines=2)
    for number in range(5):
        writer.put(b"%d\n" % number)
    dropped = writer.dropped
    stream.read.set()
    writer.flush()

    writer.put(b"last\n")
    writer.flush()

    assert dropped == writer.dropped == 3
    assert stream.text == b"first\n0\n1\n3 dropped\nlast\n"


def test_bytes_are_limited_as_well_as_lines(stream: Stream) -> None:
    """A few long lines take as much memory as many short ones."""
    writer = _stuck_writer(stream, max_bytes=10)

    for line in (b"123456\n", b"123456\n", b"1\n"):
        writer.put(line)
    stream.read.set()

    assert writer.flush()
    assert stream.text == b"first\n123456\n1 dropped\n1\n"


def test_a_line_that_exceeds_the_limit_by_itself_is_dropped(stream: Stream) -> None:
    """This is so even if the queue is empty; it is reported immediately."""
    stream.read.set()
    writer = LogWriter(stream.write, _describe, max_bytes=10)

    writer.put(b"x" * 11)

    assert writer.flush()
    assert stream.text == b"1 dropped\n"


def test_a_flush_gives_up_if_the_log_is_not_read(stream: Stream) -> None:
    """It returns that lines are left."""
    writer = _stuck_writer(stream)

    assert not writer.flush(idle_seconds=0.01)


def test_a_flush_waits_while_the_log_is_read(stream: Stream) -> None:
    """It returns after the last line."""
    writer = _stuck_writer(stream)
    for number in range(500):
        writer.put(b"%d\n" % number)
    threading.Timer(0.05, stream.read.set).start()

    assert writer.flush()
    assert stream.text.splitlines() == [b"first", *(b"%d" % number for number in range(500))]


def test_lines_that_cannot_be_written_are_counted_and_reported(stream: Stream) -> None:
    """A disk may be full for a while; the thread continues."""
    writer = _stuck_writer(stream)
    stream.errors.append(OSError(28, "No space left on device"))
    stream.read.set()
    writer.flush()

    writer.put(b"second\n")
    writer.flush()

    assert writer.dropped == 1
    assert stream.text == b"1 dropped\nsecond\n"


def test_a_closed_writer_takes_no_lines(stream: Stream) -> None:
    """Earlier lines are written, and its thread ends."""
    writer = _stuck_writer(stream)
    writer.put(b"second\n")
    writer.close()

    writer.put(b"third\n")
    stream.read.set()
    writer.flush()

    assert (stream.text, writer.dropped) == (b"first\nsecond\n", 1)


def test_a_finalizer_that_logs_during_a_put_does_not_deadlock(stream: Stream) -> None:
    """The garbage collector can run at any time, even while the queue is locked."""
    stream.read.set()
    writer = LogWriter(stream.write, _describe)

    class Line(bytes):
        def __len__(self) -> int:  # called within the lock
            writer.put(b"from a finalizer\n")
            return super().__len__()

    writer.put(Line(b"a line\n"))

    assert writer.flush()
    assert set(stream.text.splitlines()) == {b"a line", b"from a finalizer"}


def test_a_forked_child_writes_its_own_lines_only(stream: Stream) -> None:
    """The parent writes the queued lines. The child has no thread, so it starts a new one."""
    reading, writing = os.pipe()

    def write(lines: bytes) -> None:
        if os.getpid() == parent:
            stream.write(lines)
        else:
            os.write(writing, lines)

    parent = os.getpid()
    writer = LogWriter(write, _describe)
    writer.put(b"of the parent\n")
    stream.is_reached.wait()
    writer.put(b"of the parent, too\n")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
        child = os.fork()
    if child == 0:
        writer.put(b"of the child\n")
        os._exit(not writer.flush())
    _, status = os.waitpid(child, 0)

    assert status == 0
    assert os.read(reading, 100) == b"of the child\n"
    os.close(reading)
    os.close(writing)


class TestDescriptor:
    """Streams with a file descriptor, such as standard error."""

    @pytest.mark.parametrize("flags", [0, os.O_NONBLOCK], ids=["blocking", "non-blocking"])
    def test_lines_longer_than_a_pipe_come_out_whole(self, flags: int) -> None:
        """This holds even if a process that shares the pipe has switched it to non-blocking mode."""
        reading, writing = os.pipe()
        lines = [bytes([letter]) * 200_000 + b"\n" for letter in b"abc"]
        with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as stream:
            fcntl.fcntl(writing, fcntl.F_SETFL, flags)
            writer = LogWriter(writing_to(stream), _describe)
            for line in lines:
                writer.put(line)

            read = [reader.readline() for _ in lines]
            writer.close()

        assert read == lines
        assert writer.dropped == 0

    def test_without_a_reader_lines_are_lost(self) -> None:
        """Nothing else happens."""
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as stream:
            writer = LogWriter(writing_to(stream), _describe)
            for _ in range(10):
                writer.put(b"a line\n")

            assert writer.flush()
            assert writer.dropped == 10
            writer.close()

    def test_a_truncated_line_does_not_swallow_the_next(self, tmp_path, monkeypatch) -> None:
        """If the disk was full in the middle of a line, the next one starts on a new line."""
        path = tmp_path / "log"
        with path.open("w") as stream:
            write = writing_to(stream)
            with monkeypatch.context() as full:
                left = [2]

                def os_write(descriptor: int, content: memoryview) -> int:
                    if not left:
                        raise OSError(28, "No space left on device")
                    return real_write(descriptor, content[: left.pop()])

                real_write = os.write
                full.setattr(os, "write", os_write)
                with pytest.raises(OSError, match="No space"):
                    write(b"first\n")

            write(b"second\n")

        assert path.read_bytes() == b"fi\nsecond\n"
