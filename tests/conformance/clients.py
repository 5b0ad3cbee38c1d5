"""Runs the clients of `unmodified/`: each in an environment of its own, against one real server."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance import builds
from tests.conformance.deadline import Deadline
from tests.conformance.languages import WORK
from tests.conformance.matrix import Column, Outcome, Verdict

FOLDER = Path(__file__).parent / "unmodified"
_UV = str(Path(sys.executable).parent / "uv")
_KEYS = frozenset({"name", "tools", "apt", "run", "timeout_seconds"})
_INSTALL_SECONDS = 400.0
_STAMP = "installed.sha256"
_TAIL = 20  # lines of standard error that are shown

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Client:
    """A folder of `unmodified/`.

    Attributes:
        key: Name of the folder.
        name: How it is called in the matrix until its script says so.
        folder: Where its script is.
        environment: Folder of its packages.
        run: Command of its script.
        tools: Commands that must be on PATH.
        apt: Debian packages to install first.
        seconds: Time limit of the script.
    """

    key: str
    name: str
    folder: Path
    environment: Path
    run: Sequence[str]
    tools: Sequence[str]
    apt: Sequence[str]
    seconds: float

    @property
    def is_node(self) -> bool:
        """Whether its packages are npm's."""
        return (self.folder / "package.json").exists()


def find_clients(folder: Path = FOLDER, work: Path = WORK / "clients") -> list[Client]:
    """Returns every client, by name."""
    scripts = {path.parent for name in ("check.py", "check.mjs") for path in folder.glob(f"*/{name}")}
    return [read_client(each, work / each.name) for each in sorted(scripts)]


def read_client(folder: Path, environment: Path) -> Client:
    """Reads a folder and its `client.toml`, if it has one.

    Raises:
        ValueError: `client.toml` has an unknown key.
    """
    path = folder / "client.toml"
    given: dict[str, Any] = tomllib.loads(path.read_text("utf-8")) if path.exists() else {}
    if unknown := set(given) - _KEYS:
        raise ValueError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
    is_node = (folder / "package.json").exists()
    run = ["node", "check.mjs"] if is_node else ["{env}/bin/python", "check.py"]
    return Client(
        key=folder.name,
        name=given.get("name", folder.name),
        folder=folder,
        environment=environment,
        run=[each.replace("{env}", str(environment)) for each in given.get("run", run)],
        tools=[*given.get("tools", ()), *(("node", "npm") if is_node else ())],
        apt=given.get("apt", ()),
        seconds=given.get("timeout_seconds", 120.0),
    )


def fill_client(client: Client, variables: Mapping[str, str], say: Say, deadline: Deadline) -> Column:
    """Installs a client and runs its script; whatever goes wrong is in the column.

    Args:
        client: What to run.
        variables: The environment of the script.
        say: Prints a line of progress.
        deadline: When everything must have ended.
    """
    column = Column(client.key, client.name)
    try:
        builds.install(client.apt, say)
        builds.require(client.tools)
        _install(client, deadline.remaining(_INSTALL_SECONDS), say)
        _check(client, column, variables, deadline.remaining(client.seconds))
    except builds.Missing as missing:
        column.skipped = str(missing)
        column.outcomes = [Outcome("runs", "skipped", str(missing))]
    except (builds.BuildFailed, ClientFailed) as error:
        column.outcomes.append(Outcome("runs to its end", "failed", str(error)))
    for outcome in column.outcomes:
        say(f"{outcome.verdict} {outcome.name}: {outcome.detail}")
    return column


class ClientFailed(Exception):
    """The script did not run to its end, or did not print what it should; the message says what it did."""


def _install(client: Client, seconds: float, say: Say) -> None:
    digest = _digest(client)
    stamp = client.environment / _STAMP
    if stamp.exists() and stamp.read_text() == digest:
        return
    say("installs")
    shutil.rmtree(client.environment, ignore_errors=True)
    if client.is_node:
        shutil.copytree(client.folder, client.environment)
        builds.run(["npm", "ci", "--no-audit", "--no-fund"], client.environment, seconds, {})
    else:
        python = str(client.environment / "bin/python")
        commands = [[_UV, "venv", "--quiet", "--python", sys.executable, str(client.environment)]]
        if (requirements := client.folder / "requirements.txt").exists():
            commands.append([_UV, "pip", "install", "--python", python, "-r", str(requirements)])
        builds.build(commands, client.folder, seconds, {"UV_PYTHON_DOWNLOADS": "never"})
    stamp.write_text(digest)


def _digest(client: Client) -> str:
    """Returns a digest of what the environment is made of; npm's has the script too."""
    paths = client.folder.iterdir() if client.is_node else [client.folder / "requirements.txt"]
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(paths):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _check(client: Client, column: Column, variables: Mapping[str, str], seconds: float) -> None:
    """Runs the script and puts what it prints into the column."""
    folder = client.environment if client.is_node else client.folder
    try:
        finished = subprocess.run(
            client.run,
            cwd=folder,
            env={**variables, "PYTHONPATH": str(client.folder.parent)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        output, errors, end = finished.stdout, finished.stderr, f"ended with {finished.returncode}"
        is_complete = finished.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, errors = _text(error.stdout), _text(error.stderr)
        end, is_complete = f"took more than {seconds:.0f} s", False
    except OSError as error:
        raise ClientFailed(f"cannot start: {error}") from error
    for line in output.splitlines():
        if line.startswith("{"):  # some clients print advice of their own
            _note(line, column)
    if not is_complete:
        raise ClientFailed(end + "".join(f"\n    {line}" for line in errors.strip().splitlines()[-_TAIL:]))
    if not column.outcomes:
        raise ClientFailed("printed no check")


def _note(line: str, column: Column) -> None:
    try:
        message = json.loads(line)
        if "client" in message:
            column.name, column.versions = message["client"], message["versions"]
        else:
            verdict: Verdict = "passed" if message["ok"] is True else "failed"
            column.outcomes.append(Outcome(message["check"], verdict, str(message.get("detail", ""))))
    except (ValueError, TypeError, KeyError):
        raise ClientFailed(f"printed something else than its checks: {line[:300]}") from None


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
