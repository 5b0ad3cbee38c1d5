"""What NVIDIA's management library says of the GPU that the model runs on.

Its counters are of the whole GPU, whoever uses it; what the model itself holds and how busy its lanes are,
the server counts by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import pynvml

from alignserve_server.observability.instruments import Measured
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import Metrics

_log = get_logger(__name__)


def watch_gpu(uuid: str, metrics: Metrics) -> None:
    """Shows a GPU in the metrics, as it is at each scrape.

    What the GPU does not tell, as parts of one (MIG) do not tell their utilization, has no series. If the
    library is not there, as in a container without the driver's utilities, that is logged, and nothing is
    shown.

    Args:
        uuid: NVIDIA's name of it, such as `GPU-5c2ea1a0-…`.
        metrics: Where it is shown.
    """
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError as error:
        _log.warning("gpu_metrics_unavailable", gpu=uuid, reason=str(error))
        return
    readings: list[tuple[Measured, Callable[[], float]]] = [
        (metrics.gpu_utilization, lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        (metrics.gpu_memory_used_bytes, lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used),
        (metrics.gpu_memory_bytes, lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).total),
    ]
    for gauge, read in readings:
        try:
            read()
        except pynvml.NVMLError:
            continue
        gauge.labels(uuid).set_function(_or_none(read))


def _or_none(read: Callable[[], float]) -> Callable[[], float | None]:
    """Keeps a GPU that has fallen off the bus from taking the whole page of metrics with it.

    Its series ends: NaN would be the average of all GPUs.
    """

    def read_or_none() -> float | None:
        try:
            return read()
        except pynvml.NVMLError:
            return None

    return read_or_none
