"""A real server with front processes, at the loads for which one event loop is not enough."""

from __future__ import annotations

import os

from tests.gpu.check import Check
from tests.gpu.steps.serve import Load, run_with

_LOADS = (
    Load("image", 8, 16, items=16),
    Load("image", 8, 128),
    Load("text", 8, 32, items=64),
    Load("text", 8, 512),
)
_PRETENDED_LOADS = (Load("image", 2, 4), Load("text", 1, 2, items=2))


def run(check: Check) -> None:
    """Leaves a quarter of the cores to the process with the model and to the load generators."""
    fronts = check.sized(max(2, len(os.sched_getaffinity(0)) * 3 // 4), 1)
    device = check.sized("cuda", "cpu")  # CUDA is simulated only in the process that the step starts
    flags = ("--front-processes", str(fronts), "--device", device)
    run_with(check, check.sized(_LOADS, _PRETENDED_LOADS), *flags)
