"""Puts a rebuilt checkpoint in its place with all that follows from it, and records what belongs to what."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from server.recipes.mini.digests import code_digest, file_digest, folder_digest

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "server/alignserve_server/model/checkpoints/mini"
GOLDEN = ROOT / "tests/conformance/golden.json"
MADE = Path(__file__).parent / "made.json"

_KEPT = ("README.md",)  # the model card is written by hand
_NOT_WEIGHTS = frozenset({"prepared", "README.md", "NOTICE"})


def install(built: Path) -> None:
    """Replaces the embedded checkpoint by `built`, prepares it, and writes the vectors to compare with."""
    kept = {name: (CHECKPOINT / name).read_bytes() for name in _KEPT}
    shutil.rmtree(CHECKPOINT)
    shutil.copytree(built, CHECKPOINT, ignore=shutil.ignore_patterns("stage.json"))
    for name, content in kept.items():
        (CHECKPOINT / name).write_bytes(content)
    prepared = str(CHECKPOINT / "prepared")
    for command in (
        ["-m", "alignserve_server", "prepare", "--checkpoint", str(CHECKPOINT), "--to", prepared],
        ["-m", "tests.conformance.golden"],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    MADE.write_text(json.dumps(digests(), indent=1) + "\n", "utf-8")


def digests() -> dict[str, str]:
    """What the recipe is now, and each thing that was made from it."""
    return {
        "recipe": recipe_digest(Path(__file__).parent),
        "checkpoint": folder_digest(CHECKPOINT, _NOT_WEIGHTS),
        "prepared": file_digest(CHECKPOINT / "prepared" / "digests.json"),
        "golden": file_digest(GOLDEN),
    }


def recipe_digest(folder: Path) -> str:
    """One digest of all modules, apart from comments and docstrings, and of the list of photographs."""
    lines = [f"{path.name} {code_digest(path)}\n" for path in sorted(folder.glob("*.py"))]
    lines += [f"{name} {file_digest(folder / name)}\n" for name in ("everyday.txt", "sources.json")]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
