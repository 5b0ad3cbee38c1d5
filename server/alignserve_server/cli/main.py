"""The command `alignserve-server`: reads settings from flags, environment and file, then serves."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from alignserve_server.host.interrupts import end_at_signals
from alignserve_server.host.open_files import allow_open_files
from alignserve_server.host.standard_error import keep_standard_error_from_blocking, open_standard_streams
from alignserve_server.serving.process import (
    Serving,
    end_process,
    exit_code,
    failed,
    ignore_inherited_metrics,
    missing_package,
)

if TYPE_CHECKING:  # imported late, so that a missing package is reported by name
    from alignserve_server.settings import Reading, Settings

_EXAMPLES = """\
commands, each with --help:
  alignserve-server check [settings]       test everything a start needs, including the model, without serving
  alignserve-server settings [settings]    show the effective settings and where each one was given
  alignserve-server prepare                write a checkpoint that can be served without torch
  alignserve-server keys                   create, list and revoke API keys
  alignserve-server plan                   estimate the number of replicas for a load

examples:
  alignserve-server                                        the embedded demo model, offline
  alignserve-server --checkpoint kakaobrain/align-base     from the Hugging Face Hub
  alignserve-server --checkpoint /models/align --listen 0.0.0.0:50051
  alignserve-server --checkpoint /models/align --workers 4
  alignserve-server --checkpoint /models/align --front-processes 4
  ALIGNSERVE_MAX_BATCH_SIZE=64 alignserve-server --config server.toml

Each setting can be a flag (--max-batch-size 64), an environment variable (ALIGNSERVE_MAX_BATCH_SIZE=64) or a
line of the file given by --config (max_batch_size = 64). Flags override the environment, which overrides the
file. 'none' unsets a setting that can be unset. On SIGTERM the server drains and exits with code 0.
"""


def main() -> NoReturn:
    """The installed command: runs the server and ends the process with its exit code."""
    end_at_signals(is_service=sys.argv[1:2] == [] or sys.argv[1].startswith("-"))
    open_standard_streams()
    ignore_inherited_metrics()
    end_process(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Runs the server.

    Returns:
        The exit code: 0 after a clean stop, 1 if it could not start, 2 for wrong usage.
    """
    try:
        command = _COMMANDS.get(argv[0]) if argv else None
        return _serve(argv) if command is None else command(argv[1:])
    except ModuleNotFoundError as error:
        return missing_package(error)
    except BrokenPipeError:  # the reader of the output has gone
        with suppress(OSError):
            sys.stdout.close()  # or the rest would be written at exit
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 — a device, for the process's life
        return 1


@dataclass(frozen=True, slots=True)
class _CommandLine:
    """A parsed command line."""

    flags: Mapping[str, Any]  # settings
    arguments: argparse.Namespace  # everything else that the parser takes
    problems: Sequence[str]  # with arguments that no parser takes

    @property
    def config(self) -> Path | None:
        """The settings file."""
        config: Path | None = self.arguments.config
        return config

    def read(self, **defaults: object) -> Reading | str:
        """Returns the settings, or an error message if the file cannot be read."""
        from alignserve_server.settings import read_settings

        try:
            return read_settings({**defaults, **self.flags}, self.config)
        except (OSError, ValueError) as error:  # the file is unreadable or not TOML
            return f"--config {self.config}: {error}"


def _serve(argv: list[str]) -> int:
    from importlib.metadata import version

    from alignserve_server.cli.command import command_parser

    parser = command_parser(
        None,
        "Serves an ALIGN model over gRPC, with batching across callers.",
        _EXAMPLES,
        usage="%(prog)s [--help] [--version] [--config FILE] [settings]\n       %(prog)s COMMAND [--help]",
    )
    parser.add_argument(
        "--version", action="version", version=f"alignserve-server {version('alignserve-server')}"
    )
    return _run_with(_parse(parser, argv), _serving)


def _keys(argv: list[str]) -> int:
    from alignserve_server.cli.keys import run as run_keys

    return run_keys(argv)


def _prepare(argv: list[str]) -> int:
    from alignserve_server.cli.prepare import run as run_prepare
    from alignserve_server.observability.logs import configure_logs

    configure_logs("warning", "auto")
    return run_prepare(argv)


def _plan(argv: list[str]) -> int:
    # gRPC reads it when it is imported. Without it, gRPC warns about starting a process while it has threads.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from alignserve_server.cli import plan as plan_cli

    command_line = _parse(plan_cli.parser(), argv)
    # The output is the plan; log lines would only be noise.
    return _run_with(
        command_line, lambda settings: plan_cli.plan(command_line.arguments, settings), log_level="warning"
    )


def _settings(argv: list[str]) -> int:
    from alignserve_server.cli import settings as settings_cli

    command_line = _parse(settings_cli.parser(), argv)
    reading = command_line.read()
    if isinstance(reading, str):
        return failed(reading, 2)
    settings = _sound_settings(command_line, reading)
    if settings is None:
        return 2
    for warning in _unknown_variables(reading):
        print(f"alignserve-server: {warning}", file=sys.stderr)
    print(settings_cli.show(settings, reading.given, command_line.arguments.format))
    return 0


def _check(argv: list[str]) -> int:
    # See `_plan`.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from alignserve_server.cli import check as check_cli
    from alignserve_server.observability.logs import configure_logs

    command_line = _parse(check_cli.parser(), argv)
    configure_logs("warning", "console")  # the output has the warnings
    reading = command_line.read()
    if isinstance(reading, str):
        return check_cli.check(command_line.arguments, None, [*command_line.problems, reading], [])
    problems = [*command_line.problems, *map(str, reading.problems)]
    return check_cli.check(command_line.arguments, reading.settings, problems, _unknown_variables(reading))


_COMMANDS: Mapping[str, Callable[[list[str]], int]] = {
    "check": _check,
    "keys": _keys,
    "plan": _plan,
    "prepare": _prepare,
    "settings": _settings,
}


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> _CommandLine:
    """Adds the settings to the parser, and parses."""
    from alignserve_server.cli.flags import add_settings, config_file
    from alignserve_server.settings import Settings
    from alignserve_server.settings.renamed import REMOVED, RENAMED

    parser.add_argument("--config", metavar="FILE", type=config_file, help="TOML file with settings")
    add_settings(parser)
    arguments, unknown = parser.parse_known_args(argv)
    given = vars(arguments)
    names = {*Settings.model_fields, *RENAMED, *REMOVED}
    flags = {name: given.pop(name) for name in list(given) if name in names}
    return _CommandLine(flags, arguments, _unknown_arguments(unknown, is_first=unknown[:1] == argv[:1]))


def _unknown_arguments(unknown: Sequence[str], *, is_first: bool) -> list[str]:
    """Returns an error for each argument that no parser takes, with the likely correction."""
    from alignserve_server.settings import Settings
    from alignserve_server.settings.sources import flag, nearest

    problems, follows_flag = [], False
    for position, argument in enumerate(unknown):
        if argument.startswith("-"):
            name = argument.partition("=")[0]
            meant = nearest(name.lstrip("-"), [*Settings.model_fields, "config", "help", "version"])
            problems.append(f"{name}: unknown flag{f'; did you mean {flag(meant)}?' if meant else ''}")
        elif position == 0 and is_first:
            meant = nearest(argument, _COMMANDS)
            advice = f"did you mean {meant}?" if meant else f"commands are {', '.join(_COMMANDS)}"
            problems.append(f"{argument}: unknown command; {advice}")
        elif not follows_flag:
            problems.append(
                f"{argument}: unexpected argument; switches take no value, use --no-… to turn one off"
            )
        follows_flag = argument.startswith("-") and "=" not in argument
    return problems


def _run_with(command_line: _CommandLine, work: Callable[[Settings], Serving], **defaults: object) -> int:
    from alignserve_server.observability.logs import configure_logs, get_logger

    reading = command_line.read(**defaults)
    if isinstance(reading, str):
        return failed(reading, 2)
    settings = _sound_settings(command_line, reading)
    if settings is None:
        return 2
    configure_logs(settings.log_level, settings.log_format)
    for warning in _unknown_variables(reading):
        get_logger(__name__).warning("unknown_variable", reason=warning)
    return exit_code(lambda: work(settings))


def _sound_settings(command_line: _CommandLine, reading: Reading) -> Settings | None:
    """Returns the settings; if some are invalid, prints the errors and returns None."""
    problems = [*command_line.problems, *map(str, reading.problems)]
    if problems:
        failed("\n".join(problems), 2)
        return None
    return reading.settings


def _unknown_variables(reading: Reading) -> list[str]:
    from alignserve_server.settings import Settings
    from alignserve_server.settings.sources import PREFIX, nearest

    lines = []
    for variable in reading.unknown_variables:
        meant = nearest(variable[len(PREFIX) :], Settings.model_fields)
        advice = f"; did you mean {PREFIX}{meant.upper()}?" if meant else ""
        lines.append(f"{variable}: unknown setting, ignored{advice}")
    return lines


def _serving(settings: Settings) -> Serving:
    keep_standard_error_from_blocking()
    allow_open_files()  # workers inherit it
    if settings.shares_ports:
        from alignserve_server.workers.supervisor import supervise  # imports neither gRPC nor a runtime

        return supervise(settings)
    from alignserve_server.serving.loading import load_encoder
    from alignserve_server.serving.server import serve

    return serve(settings, load_encoder)
