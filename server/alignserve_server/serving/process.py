"""The process around a server: its exit code, how it ends, and variables that it ignores.

Imports nothing heavy, so that a missing package is reported by name.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

from alignserve_server.host.interrupts import restored_handlers
from alignserve_server.serving.exit_codes import EXIT_UNRECOVERABLE

RESTART_ADVICE = "exiting with code 3; the orchestrator should restart the process"
LANES_STOP_SECONDS = 5.0
FORCED_LANES_STOP_SECONDS = 0.25

Serving: TypeAlias = Coroutine[Any, Any, int | None]
Announce: TypeAlias = Callable[..., object]  # takes an event and its fields, as the log does
TellState: TypeAlias = Callable[[str], object]  # takes one of `metrics.STATES`

_MULTIPROCESS_METRICS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")

_EXTRAS = {
    "torch": "torch",
    "transformers": "torch",
    "nncf": "int8",
    "opentelemetry": "otel",
    **dict.fromkeys(("httptools", "orjson", "starlette", "uvicorn"), "http"),
}


def end_process(code: int) -> NoReturn:
    """Ends the process immediately, after flushing the log and the output."""
    logging.shutdown()
    with suppress(OSError):  # the reader of the output may have gone
        sys.stdout.flush()
    # Python's normal exit waits for threads that nothing can interrupt, such as one that decodes.
    os._exit(code)


def ignore_inherited_metrics() -> None:
    """Unsets the directory that prometheus_client's multiprocess mode uses; some base images set it.

    prometheus_client reads the variable on import and would write every sample to files there. Here each
    worker exports its own metrics.
    """
    for name in _MULTIPROCESS_METRICS:
        os.environ.pop(name, None)


def start_without_cuda_graphs() -> NoReturn:
    """Replaces this process by one with the same command and `--no-cuda-graphs`. The process id stays."""
    replace_process([*sys.orig_argv[1:], "--no-cuda-graphs"])


def replace_process(arguments: list[str]) -> NoReturn:
    """Replaces this process by a Python process with other arguments, after flushing the log."""
    logging.shutdown()
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 — our own command


def exit_code(
    serving: Callable[[], Serving], start_again: Callable[[], NoReturn] = start_without_cuda_graphs
) -> int:
    """Runs the server until it ends; returns the exit code. Logs why if it cannot start.

    If CUDA graphs cannot be captured, calls `start_again`, since this process can no longer use the device.
    """
    from alignserve_server.errors import StartupError
    from alignserve_server.model.checkpoint import CheckpointError
    from alignserve_server.model.encoder import CaptureFailed, DeviceLost
    from alignserve_server.observability.logs import get_logger

    try:
        return _run(serving()) or 0
    except (StartupError, CheckpointError) as error:
        get_logger(__name__).error("startup_failed", reason=str(error))
    except CaptureFailed as error:
        get_logger(__name__).warning("cuda_graphs_disabled", reason=str(error))
        start_again()
    except DeviceLost as error:
        get_logger(__name__).error("device_lost", reason=str(error).partition("\n")[0])
        return EXIT_UNRECOVERABLE
    except ModuleNotFoundError as error:
        return missing_package(error)
    except Exception as error:  # noqa: BLE001 — whatever a runtime raises while loading, in the format of the log
        reason = f"{type(error).__name__}: {error}"
        get_logger(__name__).error("startup_failed", reason=reason, exc_info=error)
    return 1


def _run(main: Serving) -> int | None:
    import asyncio  # not earlier: until `main` runs, Ctrl-C prints a traceback

    with restored_handlers():
        try:
            import uvloop  # with one caller, about a quarter faster than asyncio's loop
        except ModuleNotFoundError:
            return asyncio.run(main)
        return uvloop.run(main)


def missing_package(error: ModuleNotFoundError) -> int:
    """Prints which package is missing and how to install it; returns the exit code, 1."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    extras = f"server,{extra}" if extra else "server"
    return failed(f"{package} is missing; pip install 'alignserve[{extras}]'", 1)


def failed(message: str, code: int) -> int:
    """Prints an error to standard error; returns the exit code."""
    lines = [f"alignserve-server: {line}" for line in message.splitlines()]
    with suppress(OSError):  # standard error is closed
        print("\n".join(lines), file=sys.stderr)  # noqa: T201 — for people, whatever the log's format
    return code
