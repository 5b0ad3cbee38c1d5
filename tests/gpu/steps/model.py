"""The full-size model on the runtime, without a server: startup, exactness, lanes and rates."""

from __future__ import annotations

from functools import partial

from alignserve_server.model.runtimes.network import load_network

from tests.gpu import exactness, lanes, rates
from tests.gpu.check import Check
from tests.gpu.gpu import Gpu, gpu_of
from tests.gpu.loading import Loaded, load


def run(check: Check) -> None:
    """Loads the model once for all parts, because loading takes a third of the time.

    The rates come before the checks that take longer: a step that is ended keeps what it has.

    Raises:
        CheckFailed: Parts have failed.
    """
    gpu = gpu_of(check.is_pretended)
    before = gpu.used_bytes()
    with check.cuda():
        loaded = load(check, gpu, max_batch_size=check.sized(128, 3))
        network = load_network(check.checkpoint)  # transformers' own, in float32 on the CPU
        check.run_all(
            partial(loaded.report, check.results),
            partial(rates.measure_images, check, gpu, loaded),
            partial(rates.measure_texts, check, gpu, loaded),
            partial(lanes.check_answers, check, loaded),
            partial(exactness.check_images, check, loaded, network),
            partial(exactness.check_texts, check, loaded, network),
            partial(lanes.measure, check, loaded),
            partial(_report_memory, check, gpu, loaded, before),
        )


def _report_memory(check: Check, gpu: Gpu, loaded: Loaded, before: int) -> None:
    held = {"torch's GB": loaded.encoder.device_memory_bytes / 1e9}
    check.results.measured("Memory at the end", {**held, "GPU's GB": (gpu.used_bytes() - before) / 1e9})
