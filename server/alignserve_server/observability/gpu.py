"""Metrics of the GPU that the model runs on, from NVIDIA's management library.

They cover the whole GPU and all processes that use it. The server itself measures the memory that the model
holds and how busy its lanes are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from alignserve_server.observability.instruments import Measured
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import Metrics

_log = get_logger(__name__)


def watch_gpu(uuid: str, metrics: Metrics) -> None:
    """Adds the GPU to the metrics; its values are read at each scrape.

    A value that the GPU does not report has no series: MIG instances, for example, report no utilization. If
    the library is missing, as in a container without the driver's utilities, this is logged and there are no
    series.

    Args:
        uuid: The id of the GPU in CUDA, for example `GPU-5c2ea1a0-…`. If it is a MIG instance, its id in
            NVIDIA's library, and in the metrics, is `MIG-5c2ea1a0-…`.
        metrics: Where to add it.
    """
    try:
        pynvml.nvmlInit()
        uuid, handle = _found(uuid)
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


def _found(uuid: str) -> tuple[str, Any]:  # Any: a handle of the library
    """Returns the library's id and handle of a GPU or a MIG instance. Raises NVMLError."""
    try:
        return uuid, pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError_NotFound:
        uuid = f"MIG-{uuid.removeprefix('GPU-')}"
        return uuid, pynvml.nvmlDeviceGetHandleByUUID(uuid)


def _or_none(read: Callable[[], float]) -> Callable[[], float | None]:
    """Wraps a function to return None on errors, so that a lost GPU does not break the whole metrics page.

    The series ends then. With NaN instead, the average over all GPUs would be NaN.
    """

    def read_or_none() -> float | None:
        try:
            return read()
        except pynvml.NVMLError:
            return None

    return read_or_none
