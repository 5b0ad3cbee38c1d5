"""Structured logs on standard error: one event per line, as JSON for machines or in color for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import Processor

from alignserve_server.observability.log_writer import LogWriter, writing_to


def configure_logs(
    level: str, log_format: Literal["auto", "json", "console"], worker: int | str | None = None
) -> None:
    """Logs the events of the server and of its libraries in one format.

    They are rendered where they occur and written by a thread, so that nothing waits for a reader of the log.

    Args:
        level: Minimum level to write, for example `info`.
        log_format: `auto` is `console` on a terminal, otherwise `json`.
        worker: Added to every line, unless it is None.
    """
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        shared.append(lambda _logger, _method, event: {"worker": worker, **event})
    renderer: list[Processor] = _console_renderer() if is_console else _json_renderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _BackgroundHandler(sys.stderr, shared)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    handler.addFilter(_is_relevant)
    root = logging.getLogger()
    for earlier in root.handlers:
        if isinstance(earlier, _BackgroundHandler):
            earlier.close()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At `info`, a line for each request to the Hub and gRPC's tracebacks of killed calls are noise.
    for name in ("httpx", "httpcore", "asyncio", "grpc"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def dropped_lines() -> int:
    """Returns how many lines of this process were lost because the log was not read in time."""
    handlers = logging.getLogger().handlers
    return sum(handler.dropped_lines for handler in handlers if isinstance(handler, _BackgroundHandler))


class _BackgroundHandler(logging.Handler):
    """Writes to a stream without blocking; only `flush` waits, for a limited time."""

    def __init__(self, stream: TextIO, chain: Sequence[Processor]) -> None:
        """Prepares to write.

        Args:
            stream: Where to write.
            chain: Processors for the handler's own events, before they are rendered.
        """
        super().__init__()
        self._chain = chain
        self._writer = LogWriter(writing_to(stream), self._describe_gap)

    @property
    def dropped_lines(self) -> int:
        return self._writer.dropped

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._render(record)
        except Exception:  # noqa: BLE001 — for example a library's format that does not match its arguments
            self.handleError(record)
        else:
            self._writer.put(line)

    def handleError(self, record: logging.LogRecord) -> None:
        """Logs that a record could not be rendered; by default, logging would print it, which may block."""
        error, _, _ = sys.exc_info()
        self._writer.put(
            self._render_own(
                "log_line_not_rendered",
                where=f"{record.pathname}:{record.lineno}",
                reason=error.__name__ if error else "",
            )
        )

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        super().close()

    def _describe_gap(self, lines: int) -> bytes:
        return self._render_own("log_lines_dropped", count=lines)

    def _render_own(self, name: str, **fields: object) -> bytes:
        event: Any = {"event": name, **fields}  # Any: the type that processors take and return
        for processor in self._chain:
            event = processor(None, "error", event)
        record = logging.makeLogRecord({"msg": event, "_logger": None, "_name": "error"})
        return self._render(record)

    def _render(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drops gRPC's tracebacks that clients cause.

    gRPC logs one whenever a client disconnects before its response, which happens all the time. It also logs
    metadata that is not UTF-8, in full and several times: anyone could flood the log, and API keys would end
    up in it.
    """
    kind = record.exc_info[0] if record.exc_info else None
    if kind is UnicodeDecodeError:
        return not record.name.startswith("grpc.")
    return kind is None or kind.__name__ != "ExecuteBatchError"  # not exported by a public module


def _console_renderer() -> list[Processor]:
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]


def _json_renderer() -> list[Processor]:
    # Without local variables: they hold whole batches of callers' data, which is private and takes seconds to
    # render.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Returns the logger of a module; fields are keyword arguments: `log.info("batch_failed", size=3)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger
