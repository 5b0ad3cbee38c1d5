"""Startup at the default batch size."""

from __future__ import annotations

from tests.gpu.check import Check
from tests.gpu.gpu import gpu_of
from tests.gpu.loading import load


def run(check: Check) -> None:
    """Loads the model and reports the time of each part."""
    with check.cuda():
        load(check, gpu_of(check.is_pretended), max_batch_size=check.sized(32, 1)).report(check.results)
