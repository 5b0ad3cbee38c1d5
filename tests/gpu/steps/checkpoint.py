"""Writes the checkpoint that the other steps load: align-base's size, with random weights."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tests.gpu.check import Check


def run(check: Check) -> None:
    """Writes it unless it exists from an earlier run. Without a GPU it is a tiny one."""
    begin = time.perf_counter()
    if not check.checkpoint.exists():
        draft = check.work / f"draft-of-{check.checkpoint.name}"
        shutil.rmtree(draft, ignore_errors=True)
        _write(check, draft)
        draft.rename(check.checkpoint)  # an interrupted write leaves nothing that looks complete
    check.results.measured("Writing the checkpoint", {"seconds": time.perf_counter() - begin})


def _write(check: Check, folder: Path) -> None:
    if check.is_pretended:
        from tests.model.tiny import write_tiny_checkpoint

        write_tiny_checkpoint(folder)
    else:
        from tests.load.checkpoints import write_full_size

        write_full_size(folder)
