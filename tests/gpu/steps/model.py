"""The full-size model on the runtime, without a server: startup, exactness, lanes and rates."""

from __future__ import annotations

from alignserve_server.model.runtimes.network import load_network

from tests.gpu import exactness, lanes, rates
from tests.gpu.check import Check
from tests.gpu.gpu import gpu_of
from tests.gpu.loading import load


def run(check: Check) -> None:
    """Loads the model once for all parts, because loading takes a third of the time."""
    gpu = gpu_of(check.is_pretended)
    before = gpu.used_bytes()
    with check.cuda():
        loaded = load(check, gpu, max_batch_size=check.sized(128, 3))
        loaded.report(check.results)
        network = load_network(check.checkpoint)  # transformers' own, in float32 on the CPU
        exactness.check_images(check, loaded, network)
        exactness.check_texts(check, loaded, network)
        lanes.check_answers(check, loaded)
        rates.measure_images(check, gpu, loaded)
        rates.measure_texts(check, gpu, loaded)
        lanes.measure(check, loaded)
        held = {"torch's GB": loaded.encoder.device_memory_bytes / 1e9}
    check.results.measured("Memory at the end", {**held, "GPU's GB": (gpu.used_bytes() - before) / 1e9})
