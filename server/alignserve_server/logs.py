"""Structured logs on standard error: one event a line, as JSON for machines or coloured for people."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor


def configure_logs(
    level: str, log_format: Literal["auto", "json", "console"], worker: int | None = None
) -> None:
    """Sends the server's events, and those of the libraries it uses, through one format.

    Args:
        level: Lowest level that is written, such as `info`.
        log_format: `auto` is `console` on a terminal and `json` elsewhere.
        worker: Stands in every line, unless it is None.
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A request line per hub look-up and gRPC's own tracebacks of killed calls are noise at `info`.
    for name in ("httpx", "httpcore", "asyncio", "grpc"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _is_news(record: logging.LogRecord) -> bool:
    """Drops gRPC's tracebacks of answers that were under way when their client left: that happens all day."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"  # which no public module exports


def _console_renderer() -> list[Processor]:
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]


def _json_renderer() -> list[Processor]:
    # Without locals, which are whole batches of callers' data: seconds to render, and nobody else's business.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Returns the logger for a module; call with keyword arguments, `log.info("batch_failed", size=3)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger
