"""Finds the drivers: a `driver.toml` for each language says how to build and run it."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".conformance"  # build products and environments; git ignores it

_KEYS = frozenset(
    {"name", "tools", "apt", "generate", "build", "build_timeout_seconds", "run", "environment"}
)

Command = Sequence[str]


@dataclass(frozen=True, slots=True)
class Language:
    """A column of the matrix.

    Attributes:
        key: Name for `--languages`: the folder in `client/`.
        name: Heading of the column.
        folder: Where `build` runs.
        work: Where build products go.
        run: Command of the driver.
        generate: Commands that write generated code which git has.
        build: Commands that build it, in order.
        tools: Commands that must be on PATH.
        apt: Debian packages to install first.
        build_seconds: Time limit of the build.
        environment: Variables for build and run.
    """

    key: str
    name: str
    folder: Path
    work: Path
    run: Command
    generate: Sequence[Command] = ()
    build: Sequence[Command] = ()
    tools: Sequence[str] = ()
    apt: Sequence[str] = ()
    build_seconds: float = 600.0
    environment: Mapping[str, str] = field(default_factory=dict)


def find_languages(root: Path = ROOT, work: Path = WORK) -> list[Language]:
    """Returns every language with a driver, Python first."""
    own = sorted((root / "tests/conformance/drivers").glob("*.toml"), key=lambda path: path.stem)
    clients = sorted(root.glob("client/*/conformance/driver.toml"))
    return [
        *(read_language(path, path.stem, path.parent, work / path.stem) for path in own),
        *(
            read_language(path, path.parents[1].name, path.parents[1], work / path.parents[1].name)
            for path in clients
        ),
    ]


def read_language(path: Path, key: str, folder: Path, work: Path) -> Language:
    """Reads a `driver.toml`.

    Raises:
        ValueError: It has an unknown key, or lacks one.
    """
    given = tomllib.loads(path.read_text("utf-8"))
    if unknown := set(given) - _KEYS:
        raise ValueError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
    if missing := {"name", "run"} - set(given):
        raise ValueError(f"{path}: no {', '.join(sorted(missing))}")

    def filled(text: str) -> str:
        for name, value in (("work", work), ("here", folder), ("root", ROOT), ("python", sys.executable)):
            text = text.replace(f"{{{name}}}", str(value))
        return text

    def commands(key: str) -> list[Command]:
        return [[filled(each) for each in command] for command in given.get(key, ())]

    return Language(
        key=key,
        name=given["name"],
        folder=folder,
        work=work,
        run=[filled(each) for each in given["run"]],
        generate=commands("generate"),
        build=commands("build"),
        tools=given.get("tools", ()),
        apt=given.get("apt", ()),
        build_seconds=given.get("build_timeout_seconds", 600.0),
        environment={name: filled(value) for name, value in given.get("environment", {}).items()},
    )
