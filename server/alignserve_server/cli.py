"""The command `alignserve-server`: settings from flags, environment and file, then serve."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from alignserve_server.open_files import allow_open_files
from alignserve_server.standard_error import keep_standard_error_from_blocking, open_standard_streams

if TYPE_CHECKING:  # imported where it is needed: who lacks a package is told which
    from alignserve_server.settings import Settings

Serving: TypeAlias = Coroutine[Any, Any, int | None]

_EXAMPLES = """\
examples:
  alignserve-server                                        the embedded demo model, offline
  alignserve-server --checkpoint kakaobrain/align-base     from the Hugging Face hub
  alignserve-server --checkpoint /models/align --listen 0.0.0.0:50051
  alignserve-server --checkpoint /models/align --workers 4
  alignserve-server prepare --help                         a checkpoint to serve without torch
  alignserve-server keys --help                            API keys: make, list, revoke
  alignserve-server plan --help                            how many replicas a load needs
  ALIGNSERVE_MAX_BATCH_SIZE=64 alignserve-server --config server.toml

Each setting can be a flag (--max-batch-size 64), an environment variable (ALIGNSERVE_MAX_BATCH_SIZE=64) or a
line of the file given by --config (max_batch_size = 64). A flag wins over the environment, which wins over
the file. SIGTERM drains and exits with 0.
"""


_EXTRAS = {"torch": "torch", "transformers": "torch", "nncf": "int8", "opentelemetry": "otel"}


def main() -> NoReturn:
    """The installed command: runs the server and ends the process with its exit code."""
    open_standard_streams()
    end_process(run(sys.argv[1:]))


def end_process(code: int) -> NoReturn:
    """Ends the process at once, with everything written that somebody reads."""
    logging.shutdown()
    with suppress(OSError):  # who read the output may have left first
        sys.stdout.flush()
    # The interpreter's own end waits for threads that nothing can interrupt, such as one that decodes.
    os._exit(code)


def run(argv: list[str]) -> int:
    """Runs the server.

    Returns:
        The exit code: 0 after a clean stop, 1 if it could not start, 2 for wrong usage.
    """
    try:
        if argv[:1] == ["keys"]:
            from alignserve_server.keys_cli import run as run_keys

            return run_keys(argv[1:])
        if argv[:1] == ["prepare"]:
            from alignserve_server.logs import configure_logs
            from alignserve_server.prepare_cli import run as run_prepare

            configure_logs("warning", "auto")
            return run_prepare(argv[1:])
        if argv[:1] == ["plan"]:
            return _plan(argv[1:])
        return _run_with(*_parse_flags(argv), _serving)
    except ModuleNotFoundError as error:
        return _missing(error)


def _parse_flags(argv: list[str]) -> tuple[dict[str, Any], Path | None]:
    parser = argparse.ArgumentParser(
        prog="alignserve-server",
        usage="%(prog)s [--help] [--version] [--config FILE] [settings]",
        description="Serves an ALIGN model over gRPC, batched across callers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"alignserve-server {version('alignserve')}")
    flags, arguments = _parse_settings(parser, argv)
    return flags, arguments.config


def _plan(argv: list[str]) -> int:
    # Read as gRPC is imported; otherwise it remarks on the process that is started beside its threads.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from alignserve_server import plan_cli

    flags, arguments = _parse_settings(plan_cli.parser(), argv)
    # Its output is the plan; what else is logged would only be in the way.
    return _run_with(
        {"log_level": "warning", **flags},
        arguments.config,
        lambda settings: plan_cli.plan(arguments, settings),
    )


def _parse_settings(
    parser: argparse.ArgumentParser, argv: list[str]
) -> tuple[dict[str, Any], argparse.Namespace]:
    """Adds the settings to what the parser takes; returns those that were given, and the rest."""
    from pydantic_settings import CliSettingsSource

    from alignserve_server.settings import Settings

    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file with settings")
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        Settings,
        root_parser=parser,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )
    arguments = parser.parse_args(argv)
    if arguments.config is not None and not arguments.config.is_file():
        parser.error(f"--config {arguments.config}: there is no such file")
    return source(args=argv)(), arguments


def _run_with(flags: dict[str, Any], config_file: Path | None, work: Callable[[Settings], Serving]) -> int:
    from pydantic import ValidationError

    from alignserve_server.logs import configure_logs
    from alignserve_server.settings import load_settings

    try:
        settings = load_settings(flags, config_file)
    except ValidationError as error:
        return _fail("\n".join(map(_problem, error.errors())), 2)
    except (OSError, ValueError) as error:  # of the file: unreadable, or not TOML
        return _fail(f"--config {config_file}: {error}", 2)
    configure_logs(settings.log_level, settings.log_format)
    return exit_code(lambda: work(settings))


def _serving(settings: Settings) -> Serving:
    keep_standard_error_from_blocking()
    allow_open_files()  # workers inherit it
    if settings.workers > 1:
        from alignserve_server.supervisor import supervise  # imports neither gRPC nor a runtime

        return supervise(settings)
    from alignserve_server.server import load_encoder, serve

    return serve(settings, load_encoder)


def exit_code(serving: Callable[[], Serving]) -> int:
    """Runs what serves to its end, and returns the exit code; the log tells why it cannot start."""
    from alignserve_server.errors import StartupError
    from alignserve_server.logs import get_logger
    from alignserve_server.model.checkpoint import CheckpointError

    try:
        return _run(serving()) or 0
    except (StartupError, CheckpointError) as error:
        get_logger(__name__).error("cannot_start", reason=str(error))
    except ModuleNotFoundError as error:
        return _missing(error)
    except Exception as error:  # noqa: BLE001 — whatever a runtime raises while it loads, in the log's format
        reason = f"{type(error).__name__}: {error}"
        get_logger(__name__).error("cannot_start", reason=reason, exc_info=error)
    return 1


def _run(main: Serving) -> int | None:
    try:
        import uvloop  # about a quarter faster than asyncio's own loop at one caller
    except ModuleNotFoundError:
        return asyncio.run(main)
    return uvloop.run(main)


def _problem(error: Any) -> str:
    setting = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{setting}: {message}" if setting else message


def _missing(error: ModuleNotFoundError) -> int:
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    extras = f"server,{extra}" if extra else "server"
    return _fail(f"{error.name} is missing; pip install 'alignserve[{extras}]'", 1)


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # nobody reads, which changes nothing
        print("\n".join(f"alignserve-server: {line}" for line in message.splitlines()), file=sys.stderr)
    return code
