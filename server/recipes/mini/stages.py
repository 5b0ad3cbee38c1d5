"""Runs stages in order, and skips those whose inputs are as they were."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.recipes.mini.digests import code_digest, file_digest, folder_digest

_DONE = "stage.json"


@dataclass
class Progress:
    """Prints one line per stage and, during long ones, how far it is and the time that remains."""

    out: Callable[[str], object] = field(default=lambda line: print(line, file=sys.stderr, flush=True))
    every_seconds: float = 15.0
    _started: float = 0.0
    _printed: float = 0.0

    def start(self, line: str) -> None:
        """Begins a stage."""
        self._started = self._printed = time.monotonic()
        self.out(line)

    def at(self, done: int, total: int, note: str = "") -> None:
        """Reports part of a stage, at most every few seconds."""
        now = time.monotonic()
        if now - self._printed < self.every_seconds or not done:
            return
        self._printed = now
        remaining = (now - self._started) / done * (total - done)
        self.out(f"  {done:,} of {total:,}, {remaining:,.0f} s left {note}".rstrip())


@dataclass(frozen=True)
class Stage:
    """One step of the recipe.

    `run` gets the folders of earlier results by name, and an empty folder for its own. Its result is a
    function of the results named in `needs`, of the source files in `code` and of `parameters`.
    """

    name: str
    run: Callable[[Mapping[str, Path], Path], None]
    needs: tuple[str, ...] = ()
    code: tuple[Path, ...] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)


def run_all(stages: Sequence[Stage], work: Path, progress: Progress) -> dict[str, Path]:
    """Runs every stage whose inputs changed, and returns the folder of each result."""
    folders = {stage.name: work / stage.name for stage in stages}
    for stage in stages:
        folder = folders[stage.name]
        digest = inputs_digest(stage, folders)
        if _recorded(folder) == digest:
            progress.out(f"{stage.name}: unchanged")
            continue
        progress.start(f"{stage.name}: started")
        cpu, wall = time.process_time(), time.monotonic()
        _run(stage, folders, digest)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        progress.out(f"{stage.name}: done in {wall:,.0f} s, {cpu:,.0f} s of CPU")
    return folders


def inputs_digest(stage: Stage, folders: Mapping[str, Path]) -> str:
    """SHA-256 of all that decides a stage's result."""
    document = {
        "parameters": dict(stage.parameters),
        "needs": {name: folder_digest(folders[name], frozenset({_DONE})) for name in stage.needs},
        "code": {path.name: _content_digest(path) for path in stage.code},
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def _content_digest(path: Path) -> str:
    return code_digest(path) if path.suffix == ".py" else file_digest(path)


def _recorded(folder: Path) -> str | None:
    """The recorded digest. A result is moved into place in one step, so it is complete or absent."""
    try:
        return str(json.loads((folder / _DONE).read_text("utf-8"))["inputs"])
    except FileNotFoundError:
        return None


def _run(stage: Stage, folders: Mapping[str, Path], digest: str) -> None:
    folder = folders[stage.name]
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    stage.run(folders, draft)
    (draft / _DONE).write_text(json.dumps({"inputs": digest}) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
