"""Reads from the Dockerfile how its images are built."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess

from tests.processes import BIN, ROOT

DOCKERFILE = ROOT / "deploy/docker/Dockerfile"


@cache
def stages() -> dict[str, list[tuple[str, str]]]:
    """Returns the instructions of each stage, preceded by those of its base stage."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in filter(None, text.splitlines()):
        keyword, _, value = line.partition(" ")
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            current = found[name] = list(found.get(base, []))
        else:
            current.append((keyword, value.strip()))
    return found


@dataclass(frozen=True)
class Image:
    """The image of one target, as a container engine would see it."""

    target: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables of ENV."""
        pairs = [pair for value in self.all("ENV") for pair in shlex.split(value)]
        return dict(pair.split("=", 1) for pair in pairs)

    @property
    def entrypoint(self) -> list[str]:
        """The command, which must be in exec form."""
        return _exec_form(self.last("ENTRYPOINT"))

    @property
    def health_command(self) -> list[str]:
        """The command of HEALTHCHECK, which must be in exec form too."""
        return _exec_form(self.last("HEALTHCHECK").partition("CMD ")[2])

    def last(self, keyword: str) -> str:
        """Returns the effective value of an instruction: that of its last occurrence."""
        return self.all(keyword)[-1]

    def all(self, keyword: str) -> list[str]:
        """Returns the values of an instruction, in order."""
        return [value for found, value in stages()[self.target] if found == keyword]


def run_step(step: str, folder: Path, variables: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Runs a RUN step in a folder that contains `/install`, `/checkpoint` and `/sbom`.

    Commands are searched in the folder's `bin`, then in this environment. Mounts are omitted.
    """
    command = re.sub(r"--mount=\S+", "", step)
    for path in ("/install", "/checkpoint", "/sbom"):
        command = command.replace(path, f"{folder}{path}")
    environment = {**os.environ, **(variables or {}), "PATH": f"{folder}/bin:{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        ["sh", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def arguments(stage: str) -> dict[str, str]:
    """Returns the build arguments of a stage that have a default."""
    pairs = [value.partition("=") for keyword, value in stages()[stage] if keyword == "ARG"]
    return {name: default for name, _, default in pairs}


def copy_sources(stage: str, folder: Path) -> Path:
    """Copies what a stage copies from the repository, and returns the folder."""
    for keyword, value in stages()[stage]:
        if keyword == "COPY" and not value.startswith("--from"):
            *sources, target = value.split()
            for source in map(ROOT.joinpath, sources):
                if source.is_dir():
                    shutil.copytree(source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    (folder / target).mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, folder / target)
    return folder


def _exec_form(value: str) -> list[str]:
    command: list[str] = json.loads(value)
    return command
