"""Reads `cases.yaml`: what every client is asked, of which server, and what it must answer."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
CASES = FOLDER / "cases.yaml"
ACTIONS = frozenset(
    {"call", "begin", "progress", "end", "connect", "fake", "stream_items", "pause", "server", "relay"}
)
_CASE_KEYS = frozenset({"name", "title", "server", "connect", "relay", "steps", "seconds"})
_STEP_KEYS = frozenset({"expect", "takes_at_least", "takes_at_most"})


@dataclass(frozen=True, slots=True)
class Step:
    """One action of a case, and what must come of it.

    Attributes:
        action: One of `ACTIONS`.
        argument: What the action needs, such as the request of a `call`.
        expect: What the answer must be; see `expectations`.
        takes_at_least: Shortest time of the action, in seconds.
        takes_at_most: Longest time, far above what a busy machine needs; only an unwanted wait is longer.
    """

    action: str
    argument: Any
    expect: Any = None
    takes_at_least: float = 0.0
    takes_at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the matrix.

    Attributes:
        name: Short and unique.
        title: The row's heading, a sentence.
        server: Name of the server, one of `Cases.servers`.
        connect: Keys for the driver's `connect`, besides `target`.
        has_relay: Whether the driver connects through a relay that the case can cut.
        seconds: Time limit of each step.
        steps: What happens.
    """

    name: str
    title: str
    server: str
    steps: Sequence[Step]
    connect: Mapping[str, Any] = field(default_factory=dict)
    has_relay: bool = False
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Cases:
    """All cases, and the servers that they need."""

    servers: Mapping[str, Mapping[str, Any]]
    cases: Sequence[Case]

    def selected(self, patterns: Sequence[str]) -> list[Case]:
        """Returns the cases whose name matches one of the patterns; all of them without patterns.

        Raises:
            ValueError: A pattern matches none.
        """
        for pattern in patterns:
            if not any(fnmatch.fnmatch(case.name, pattern) for case in self.cases):
                raise ValueError(f"no case is named {pattern!r}; --list shows them all")
        return [
            case
            for case in self.cases
            if not patterns or any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)
        ]


def read_cases(path: Path = CASES) -> Cases:
    """Reads a file of cases.

    Raises:
        ValueError: It is not valid; the message names the case.
    """
    document = yaml.safe_load(path.read_text("utf-8"))
    cases = [_case(each, document["servers"]) for each in document["cases"]]
    names = [case.name for case in cases]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"cases of the same name: {', '.join(sorted(twice))}")
    return Cases(document["servers"], cases)


def _case(given: dict[str, Any], servers: Mapping[str, Any]) -> Case:
    name = given.get("name", "without a name")
    if unknown := set(given) - _CASE_KEYS:
        raise ValueError(f"case {name}: unknown keys {', '.join(sorted(unknown))}")
    if given["server"] not in servers:
        raise ValueError(f"case {name}: unknown server {given['server']!r}")
    return Case(
        name=name,
        title=given["title"],
        server=given["server"],
        steps=[_step(name, each) for each in given["steps"]],
        connect=given.get("connect", {}),
        has_relay=given.get("relay", False),
        seconds=given.get("seconds", 60.0),
    )


def _step(case: str, given: dict[str, Any]) -> Step:
    actions = set(given) & ACTIONS
    if len(actions) != 1 or set(given) - ACTIONS - _STEP_KEYS:
        raise ValueError(f"case {case}: a step has the keys {', '.join(sorted(given))}")
    action = actions.pop()
    return Step(action, given[action], **{key: given[key] for key in _STEP_KEYS & set(given)})
