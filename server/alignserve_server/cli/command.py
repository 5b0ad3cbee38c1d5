"""Shared by all commands: how parsers are set up and how errors are reported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from alignserve_server.settings.renamed import RENAMED
from alignserve_server.settings.sources import flag

PROGRAM = "alignserve-server"


def command_parser(
    command: str | None, description: str, examples: str, *, usage: str | None = None
) -> argparse.ArgumentParser:
    """Returns the parser of a command, or of the server itself; its help ends with the examples."""
    return argparse.ArgumentParser(
        prog=PROGRAM if command is None else f"{PROGRAM} {command}",
        usage=usage,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_renamed_flags(parser: argparse.ArgumentParser, *old_names: str) -> None:
    """Adds flags of earlier versions, which end the command with an error that gives the new name."""
    for name in old_names:
        parser.add_argument(
            flag(name), action=_Renamed, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def command_failed(command: str, message: str, code: int) -> int:
    """Prints an error of a command to standard error; returns the exit code."""
    print(f"{PROGRAM} {command}: {message}", file=sys.stderr)
    return code


class _Renamed(argparse.Action):
    """Ends the command with an error that gives the flag's new name."""

    # Any: argparse passes whatever it parsed.
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        _values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        parser.error(f"{option_string}: renamed; use {flag(RENAMED[self.dest])}")
