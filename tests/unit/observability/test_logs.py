"""One event per line: JSON for machines, text for people."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import redirect_stderr
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alignserve_server.observability.logs import configure_logs, dropped_lines, get_logger
from grpc._cython.cygrpc import ExecuteBatchError

SENT = "what a caller sent"


def _written() -> None:
    """Waits until the log is written."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _text(capsys: pytest.CaptureFixture[str]) -> str:
    _written()
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _text(capsys).splitlines()]


def _fail() -> None:
    pixels = SENT  # noqa: F841 — must not be found in a log
    raise ValueError("the cause")


def test_a_line_is_an_object_with_event_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Besides these it contains only the event's own fields; the time is in UTC."""
    configure_logs("info", "json")

    get_logger("test").info("batch_failed", size=3)

    (line,) = _lines(capsys)
    time = datetime.fromisoformat(line.pop("timestamp").replace("Z", "+00:00"))
    assert time.utcoffset() == timedelta(0)
    assert line == {"event": "batch_failed", "level": "info", "size": 3}


def test_every_line_names_the_worker(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of several processes can be distinguished, including those of libraries."""
    configure_logs("info", "json", worker=0)

    get_logger("test").info("ready")
    logging.getLogger("some.library").warning("retry")

    assert [(line["worker"], line["event"]) for line in _lines(capsys)] == [(0, "ready"), (0, "retry")]


def test_libraries_write_in_the_same_format(capsys: pytest.CaptureFixture[str]) -> None:
    """Records of the standard library's logging are JSON too, with their arguments filled in."""
    configure_logs("info", "json")

    logging.getLogger("some.library").warning("retry %d", 2)

    (line,) = _lines(capsys)
    assert (line["event"], line["level"]) == ("retry 2", "warning")
    assert "timestamp" in line


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("error", ["error"]),
    ],
)
@pytest.mark.parametrize("get", [get_logger, logging.getLogger], ids=["own", "library"])
def test_events_below_the_level_are_not_written(
    capsys: pytest.CaptureFixture[str], get: Any, level: str, written: list[str]
) -> None:
    """The level applies to the server's events and to those of libraries."""
    configure_logs(level, "json")
    log = get("test")

    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("event")

    assert [line["level"] for line in _lines(capsys)] == written


@pytest.mark.parametrize("name", ["httpx", "httpcore", "asyncio", "grpc"])
def test_verbose_libraries_log_only_warnings(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """One of their lines per request would drown those of the server."""
    configure_logs("debug", "json")

    logging.getLogger(name).info("GET / 200")
    logging.getLogger(name).warning("trouble")

    assert [line["event"] for line in _lines(capsys)] == ["trouble"]


def test_disconnected_clients_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """gRPC logs each with a long traceback, and callers with short deadlines cause them all the time."""
    configure_logs("info", "json")
    log = logging.getLogger("grpc._cython.cygrpc")

    for error in (ExecuteBatchError("the client has left"), RuntimeError("a bug")):
        try:
            raise error
        except Exception:
            log.exception("raised by servicer method")

    (line,) = _lines(capsys)
    assert line["exception"][0]["exc_type"] == "RuntimeError"


@pytest.mark.parametrize(("name", "written"), [("grpc._cython.cygrpc", 0), ("some.library", 1)])
def test_metadata_that_is_not_text_is_not_logged(
    capsys: pytest.CaptureFixture[str], name: str, written: int
) -> None:
    """gRPC would log it in full: anyone could flood the log, and it could contain a key."""
    configure_logs("info", "json")

    try:
        b"Bearer \xff".decode()
    except UnicodeDecodeError:
        logging.getLogger(name).exception("Invalid encoding on %s", b"Bearer \xff")

    assert len(_lines(capsys)) == written


def test_an_exception_comes_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """With exc_info, the line has the type, message and frames as structured fields."""
    configure_logs("info", "json")

    try:
        _fail()
    except ValueError as error:
        get_logger("test").error("inference_failed", exc_info=error)

    (line,) = _lines(capsys)
    (exception,) = line["exception"]
    assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "the cause")
    assert exception["frames"][-1]["name"] == "_fail"


def test_without_exc_info_there_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """An error that is logged while it is handled is one short line."""
    configure_logs("info", "json")

    try:
        _fail()
    except ValueError as error:
        get_logger("test").error("startup_failed", reason=str(error))

    (line,) = _lines(capsys)
    assert line.keys() == {"event", "level", "timestamp", "reason"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('two\nlines {"a": 1}', 'two\nlines {"a": 1}'),
        ("\u2028 ü", "\u2028 ü"),
        (Path("/data"), repr(Path("/data"))),
    ],
    ids=["line break", "not ASCII", "not JSON"],
)
def test_no_value_breaks_a_line(capsys: pytest.CaptureFixture[str], value: object, expected: str) -> None:
    """Whatever is logged, it is one line of valid JSON."""
    configure_logs("info", "json")

    get_logger("test").info("event", value=value)

    (line,) = _lines(capsys)
    assert line["value"] == expected


@pytest.mark.parametrize(
    ("log_format", "is_terminal", "is_json"),
    [
        ("auto", False, True),
        ("auto", True, False),
        ("json", True, True),
        ("console", False, False),
    ],
)
def test_auto_is_text_on_a_terminal_and_json_elsewhere(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log_format: Any,
    is_terminal: bool,
    is_json: bool,
) -> None:
    """The other formats do not depend on where the log goes."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)

    configure_logs("info", log_format)
    get_logger("test").info("listening", port=50051)

    assert _text(capsys).startswith("{") is is_json


def test_the_console_shows_event_values_and_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """People see what happened, where, and why."""
    configure_logs("info", "console")

    try:
        _fail()
    except ValueError as error:
        get_logger("test").error("inference_failed", modality="image", exc_info=error)

    text = _text(capsys)
    for part in ("inference_failed", "modality", "image", "ValueError", "the cause", "_fail"):
        assert part in text


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_values(capsys: pytest.CaptureFixture[str], log_format: Any) -> None:
    """Callers' data stays out of the log, and rendering it does not slow down a lane."""
    configure_logs("info", log_format)

    try:
        _fail()
    except ValueError as error:
        get_logger("test").error("inference_failed", exc_info=error)

    assert SENT not in _text(capsys)


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A second server in the same process does not duplicate every line."""
    configure_logs("info", "json")
    configure_logs("info", "json")

    get_logger("test").info("ready")

    assert len(_lines(capsys)) == 1


def test_a_log_that_is_not_read_blocks_nothing() -> None:
    """Dropped lines are counted, and reported in the log's format once it is read again."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader, os.fdopen(writing, "w") as stream, redirect_stderr(stream):
        configure_logs("info", "json", worker=3)
        log = get_logger("test")

        for number in range(5000):
            log.info("event", number=number, value="x" * 100)
        logged, gaps = 0, []
        while logged < 5000:
            line = json.loads(reader.readline())
            gaps += [line] if line["event"] == "log_lines_dropped" else []
            logged += line.get("count", 1)
        dropped = dropped_lines()

    assert sum(gap["count"] for gap in gaps) == dropped > 0
    assert {(gap["level"], gap["worker"]) for gap in gaps} == {("error", 3)}
    assert all("timestamp" in gap for gap in gaps)


def test_a_record_that_cannot_be_rendered_is_reported_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """By default, logging would print to standard error, which may block. Here the caller is not affected."""
    configure_logs("info", "json")

    logging.getLogger("some.library").warning("retry %d", "twice")

    (line,) = _lines(capsys)
    assert (line["event"], line["level"], line["reason"]) == ("log_line_not_rendered", "error", "TypeError")
    assert "test_logs.py" in line["where"]
