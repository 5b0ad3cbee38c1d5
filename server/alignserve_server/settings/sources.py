"""Sources of settings: flags, environment and file, each value with the place where it was given."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

PREFIX = "ALIGNSERVE_"
# Variables of the client, which may run in the same environment.
_CLIENT_VARIABLES = (
    *("SERVER", "TARGET", "API_KEY", "TLS", "ROOT_CERTIFICATES", "CLIENT_CERTIFICATE", "CLIENT_KEY"),
)
# Kubernetes sets these for each Service, so for one named `alignserve` or `alignserve-…`. PORT is an address
# such as tcp://10.0.0.1:50051; a number is an attempt at a setting.
_SERVICE_VARIABLE = re.compile(
    r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT(_\d+_(TCP|UDP|SCTP))?=\w+://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)",
    re.DOTALL,
)
_KEY_OF_LINE = re.compile(r"""\s*(?:\[\[?\s*)?(["']?)([^"'\s=\].]+)\1\s*[=.\]]""")
_LONGEST_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Given:
    """A value, and where it was given."""

    value: Any  # a string, or whatever TOML has
    place: str  # --lanes, ALIGNSERVE_LANES or server.toml:3
    separator: str = "="  # between the place and the value, where both are shown

    @property
    def is_variable(self) -> bool:
        """Whether an environment variable gave it."""
        return self.separator == "="

    @property
    def is_flag(self) -> bool:
        """Whether the command line gave it."""
        return self.separator == " "

    def named(self, name: str) -> str:
        """Returns the name of a setting as it is written here: as variable, flag or key of a file."""
        if self.is_variable:
            return f"{PREFIX}{name.upper()}"
        return flag(name) if self.is_flag else name

    def __str__(self) -> str:
        text = str(self.value)
        shown = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
        return f"{self.place}{self.separator}{shown if shown.isprintable() else repr(shown)}"


def of_flags(flags: Mapping[str, Any]) -> dict[str, Given]:
    """Returns the settings given as flags, by name."""
    return {
        name: Given(value, flag(f"no_{name}" if value is False else name), " ")
        for name, value in flags.items()
    }


def of_environment(environment: Mapping[str, str], names: Collection[str]) -> dict[str, Given]:
    """Returns the settings given by variables, including empty ones."""
    found = {}
    for variable, value in sorted(environment.items(), reverse=True):  # capitals come last, and win
        name = variable[len(PREFIX) :].lower()
        if _is_ours(variable) and name in names:
            found[name] = Given(value, variable)
    return found


def of_file(path: Path) -> dict[str, Given]:
    """Returns the top level of a TOML file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not TOML.
    """
    text = path.read_text(encoding="utf-8")
    lines = dict(_lines(text))
    return {
        name: Given(value, f"{path}:{lines.get(name, '?')}", f": {name} = ")
        for name, value in tomllib.loads(text).items()
    }


def unknown_variables(environment: Mapping[str, str], names: Collection[str]) -> list[str]:
    """Returns the variables with our prefix that are not a setting, the client's or made by Kubernetes."""
    return sorted(
        variable
        for variable, value in environment.items()
        if _is_ours(variable)
        and (name := variable[len(PREFIX) :]).lower() not in names
        and name.upper() not in _CLIENT_VARIABLES
        and not _SERVICE_VARIABLE.fullmatch(f"{name}={value}")
    )


def flag(name: str) -> str:
    """Returns the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def nearest(word: str, words: Collection[str]) -> str | None:
    """Returns the most similar word; None if none is similar."""
    matches = get_close_matches(word.lower().replace("-", "_"), words, n=1, cutoff=0.7)
    if not matches:
        matches = [one for one in words if one.startswith(f"{word.lower().replace('-', '_')}_")][:1]
    return matches[0] if matches else None


def _is_ours(variable: str) -> bool:
    return variable.upper().startswith(PREFIX)


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """Yields the keys and tables of a TOML file with their line numbers, in reverse order."""
    numbered = list(enumerate(text.splitlines(), 1))
    for number, line in reversed(numbered):
        if match := _KEY_OF_LINE.match(line):
            yield match[2], number
