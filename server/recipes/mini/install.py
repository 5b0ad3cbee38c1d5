"""Puts a rebuilt checkpoint in its place with all that follows from it, and records what belongs to what."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from alignserve_server.model.prepared import open_prepared

from server.recipes.mini.digests import code_digest, file_digest, folder_digest

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "server/alignserve_server/model/checkpoints/mini"
GOLDEN = ROOT / "tests/conformance/golden.json"
MADE = Path(__file__).parent / "made.json"

CARD = "README.md"

_NOT_WEIGHTS = frozenset({"prepared", CARD, "NOTICE"})
_AFTERWARDS = frozenset({"install.py", "measure.py", "card.py"})  # they change no weight
_DATA = ("everyday.txt", "sources.json", "calibration.jsonl")


def install(built: Path) -> None:
    """Replaces the embedded checkpoint by `built`, prepares it, and writes the vectors to compare with."""
    card = (CHECKPOINT / CARD).read_bytes()
    shutil.rmtree(CHECKPOINT)
    # copyfile: the mode of a file belongs to the folder that it was built in
    left_out = shutil.ignore_patterns("stage.json")
    shutil.copytree(built, CHECKPOINT, ignore=left_out, copy_function=shutil.copyfile)
    (CHECKPOINT / CARD).write_bytes(card)
    prepared = str(CHECKPOINT / "prepared")
    for command in (
        ["-m", "alignserve_server", "prepare", "--checkpoint", str(CHECKPOINT), "--to", prepared],
        ["-m", "tests.conformance.golden"],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    _record(digests())


def put_card_into_prepared() -> None:
    """Copies the card, which has changed, to where `prepare` put it."""
    prepared = open_prepared(CHECKPOINT / "prepared")
    shutil.copyfile(CHECKPOINT / CARD, prepared.folder / CARD)
    prepared.save()
    if MADE.exists():  # the rest may be stale, and stays so
        _record({**json.loads(MADE.read_text("utf-8")), "prepared": digests()["prepared"]})


def digests() -> dict[str, str]:
    """What the recipe is now, and each thing that was made from it."""
    return {
        "recipe": recipe_digest(Path(__file__).parent),
        "checkpoint": checkpoint_digest(),
        "prepared": file_digest(CHECKPOINT / "prepared" / "digests.json"),
        "golden": file_digest(GOLDEN),
    }


def checkpoint_digest() -> str:
    """One digest of all that makes the vectors; the card and the prepared form follow from it."""
    return folder_digest(CHECKPOINT, _NOT_WEIGHTS)


def recipe_digest(folder: Path) -> str:
    """One digest of what makes a checkpoint: modules without comments and docstrings, and what they read."""
    modules = [path for path in sorted(folder.glob("*.py")) if path.name not in _AFTERWARDS]
    lines = [f"{path.name} {code_digest(path)}\n" for path in modules]
    lines += [f"{name} {file_digest(folder / name)}\n" for name in _DATA]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _record(made: dict[str, str]) -> None:
    MADE.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
