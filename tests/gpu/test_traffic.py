"""Counts of the image forward at align-base's size, as the bounds in the README have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.traffic import meta_towers, traffic_of

pytestmark = pytest.mark.model
pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA on Linux")


def test_fewer_passes_move_less_memory() -> None:
    """In megabytes per image and kernels per batch of 32."""
    from alignserve_server.model.runtimes.kernels.epilogues import EpilogueForward
    from alignserve_server.model.runtimes.kernels.fused import FusedForward

    towers = meta_towers()
    forwards = (towers.embed_pixels_plainly, EpilogueForward(towers), FusedForward(towers))

    counted = [traffic_of(forward) for forward in forwards]

    assert [round(one.bytes / 32e6) for one in counted] == [1007, 603, 284]
    assert [one.kernels for one in counted] == [930, 492, 274]


@pytest.mark.long
def test_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """Triton needs no GPU for that, and none may need more shared memory than a GPU has (sm_86: 99 KiB)."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.gpu.compile_kernels", "fp16"]

    compiled = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    lines = compiled.stdout.splitlines()
    assert len(lines) == 13 * 4  # GPUs
    assert max(int(line.split()[-1]) for line in lines) <= 99 << 10
