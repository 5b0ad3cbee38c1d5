"""What a server process does around serving: its exit code, how it ends, what it takes from the environment.

Imports nothing heavy, so that who lacks a package is told which.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

from alignserve_server.host.interrupts import restored_handlers

Serving: TypeAlias = Coroutine[Any, Any, int | None]

_MULTIPROCESS_METRICS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")

_EXTRAS = {"torch": "torch", "transformers": "torch", "nncf": "int8", "opentelemetry": "otel"}


def end_process(code: int) -> NoReturn:
    """Ends the process at once, with everything written that somebody reads."""
    logging.shutdown()
    with suppress(OSError):  # who read the output may have left first
        sys.stdout.flush()
    # The interpreter's own end waits for threads that nothing can interrupt, such as one that decodes.
    os._exit(code)


def ignore_inherited_metrics() -> None:
    """Forgets the folder in which other servers' processes share metrics; images for these set it.

    prometheus_client, which looks when it is imported, would write every sample to files there. Here each
    worker has a page of its own.
    """
    for name in _MULTIPROCESS_METRICS:
        os.environ.pop(name, None)


def exit_code(serving: Callable[[], Serving]) -> int:
    """Runs what serves to its end, and returns the exit code; the log tells why it cannot start."""
    from alignserve_server.errors import StartupError
    from alignserve_server.model.checkpoint import CheckpointError
    from alignserve_server.observability.logs import get_logger

    try:
        return _run(serving()) or 0
    except (StartupError, CheckpointError) as error:
        get_logger(__name__).error("startup_failed", reason=str(error))
    except ModuleNotFoundError as error:
        return missing_package(error)
    except Exception as error:  # noqa: BLE001 — whatever a runtime raises while it loads, in the log's format
        reason = f"{type(error).__name__}: {error}"
        get_logger(__name__).error("startup_failed", reason=reason, exc_info=error)
    return 1


def _run(main: Serving) -> int | None:
    import asyncio  # not earlier: until `main` runs, Ctrl-C is a traceback

    with restored_handlers():
        try:
            import uvloop  # about a quarter faster than asyncio's own loop at one caller
        except ModuleNotFoundError:
            return asyncio.run(main)
        return uvloop.run(main)


def missing_package(error: ModuleNotFoundError) -> int:
    """Says which package is missing and what installs it; returns the exit code, 1."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    extras = f"server,{extra}" if extra else "server"
    return failed(f"{package} is missing; pip install 'alignserve[{extras}]'", 1)


def failed(message: str, code: int) -> int:
    """Says what is wrong on standard error; returns the code."""
    with suppress(OSError):  # nobody reads, which changes nothing
        print("\n".join(f"alignserve-server: {line}" for line in message.splitlines()), file=sys.stderr)  # noqa: T201
    return code
