"""The full-size model on the runtime, without a server: startup, exactness, lanes and rates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from alignserve_server.model.runtimes.network import load_network

from tests.gpu import exactness, lanes, rates
from tests.gpu.check import Check, CheckFailed
from tests.gpu.gpu import gpu_of
from tests.gpu.loading import load


def run(check: Check) -> None:
    """Loads the model once for all parts, because loading takes a third of the time.

    A part that finds a fault does not stop those after it.

    Raises:
        CheckFailed: Parts have found faults.
    """
    gpu = gpu_of(check.is_pretended)
    before = gpu.used_bytes()
    with check.cuda():
        loaded = load(check, gpu, max_batch_size=check.sized(128, 3))
        network = load_network(check.checkpoint)  # transformers' own, in float32 on the CPU
        faults = _faults(
            partial(loaded.report, check.results),
            partial(exactness.check_images, check, loaded, network),
            partial(exactness.check_texts, check, loaded, network),
            partial(lanes.check_answers, check, loaded),
            partial(rates.measure_images, check, gpu, loaded),
            partial(rates.measure_texts, check, gpu, loaded),
            partial(lanes.measure, check, loaded),
        )
        held = {"torch's GB": loaded.encoder.device_memory_bytes / 1e9}
    check.results.measured("Memory at the end", {**held, "GPU's GB": (gpu.used_bytes() - before) / 1e9})
    if faults:
        raise CheckFailed("; ".join(faults))


def _faults(*parts: Callable[[], None]) -> list[str]:
    faults: list[str] = []
    for part in parts:
        try:
            part()
        except CheckFailed as fault:
            faults.append(str(fault))
    return faults
