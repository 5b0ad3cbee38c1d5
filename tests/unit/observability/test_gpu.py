"""Metrics of a GPU, read from a fake of NVIDIA's library with its real exceptions and structures."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest
from alignserve_server.observability.gpu import watch_gpu
from alignserve_server.observability.metrics import Metrics
from structlog.testing import capture_logs

UUID = "GPU-5c2ea1a0-1111-2222-3333-444455556666"
GIB = 1 << 30


class Library:
    """The three functions that are called for a GPU."""

    def __init__(self) -> None:
        self.uuid = UUID
        self.has_utilization = True
        self.is_lost = False

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self.uuid:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        self._check(handle)
        if not self.has_utilization:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=87, memory=40)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        self._check(handle)
        return SimpleNamespace(total=80 * GIB, used=5 * GIB, free=75 * GIB)

    def _check(self, handle: str) -> None:
        assert handle == "handle"
        if self.is_lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    for name in ("nvmlDeviceGetHandleByUUID", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo"):
        monkeypatch.setattr(pynvml, name, getattr(library, name))
    return library


def shown(metrics: Metrics) -> dict[str, float]:
    """Returns the GPU's series by name."""
    return {
        sample.name.removeprefix("alignserve_gpu_"): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("gpu") == UUID
    }


@pytest.mark.usefixtures("library")
def test_utilization_and_memory_are_shown_in_base_units(metrics: Metrics) -> None:
    """Utilization is a ratio from 0 to 1, memory is in bytes."""
    watch_gpu(UUID, metrics)

    assert shown(metrics) == {
        "utilization_ratio": 0.87,
        "memory_used_bytes": 5 * GIB,
        "memory_bytes": 80 * GIB,
    }


def test_values_that_the_gpu_does_not_report_have_no_series(library: Library, metrics: Metrics) -> None:
    """MIG instances report memory but no utilization."""
    library.has_utilization = False

    watch_gpu(UUID, metrics)

    assert set(shown(metrics)) == {"memory_used_bytes", "memory_bytes"}


def test_a_mig_instance_is_found_by_its_own_id(library: Library, metrics: Metrics) -> None:
    """CUDA has the same id for it, but without saying that it is an instance."""
    library.uuid = UUID.replace("GPU", "MIG")

    watch_gpu(UUID, metrics)

    assert metrics.registry.get_sample_value("alignserve_gpu_memory_bytes", {"gpu": library.uuid}) == 80 * GIB


def test_a_lost_gpu_does_not_break_the_metrics_page(library: Library, metrics: Metrics) -> None:
    """Its series end, since with NaN the average over all GPUs would be NaN; all other series stay."""
    watch_gpu(UUID, metrics)

    library.is_lost = True

    assert shown(metrics) == {}


@pytest.mark.usefixtures("library")
def test_a_gpu_that_is_not_found_is_logged(metrics: Metrics) -> None:
    """The server runs without its metrics."""
    with capture_logs() as lines:
        watch_gpu("GPU-another", metrics)

    assert [line["event"] for line in lines] == ["gpu_metrics_unavailable"]
    assert shown(metrics) == {}


def test_a_machine_without_the_driver_has_no_gpu_metrics(metrics: Metrics) -> None:
    """The real Python package of NVIDIA reports that the driver is missing."""
    with capture_logs() as lines:
        watch_gpu(UUID, metrics)

    assert [line["event"] for line in lines] == ["gpu_metrics_unavailable"]
