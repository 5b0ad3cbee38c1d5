"""How a model uses its GPU is visible to operators, and decides which measured batch sizes hold."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from alignserve_server.model.encoder import GpuUse
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.metrics import Metrics
from alignserve_server.observability.tracing import Tracing
from alignserve_server.serving.loading import load_warm
from alignserve_server.serving.running_model import RunningModel
from alignserve_server.settings import Settings
from prometheus_client import CollectorRegistry

GPU = GpuUse("GPU-5c2ea1a0", "fused", {"image": 28, "text": 0})


def _loaded(encoder: FakeEncoder, settings: Settings) -> FakeEncoder:
    return encoder


async def published(gpu: GpuUse | None) -> tuple[Metrics, dict[str, object]]:
    """Returns the metrics of a running model, and its fields of the event `ready`."""
    encoder, metrics, settings = FakeEncoder(), Metrics(CollectorRegistry()), Settings()
    encoder.gpu = gpu
    loaded, sizes = load_warm(settings, partial(_loaded, encoder), "1.0")
    observer = MetricsObserver(metrics, Tracing(None, 0.0))
    model = RunningModel.start(settings, loaded, sizes, metrics, observer)
    model.publish(metrics, "1.0")
    await model.stop(timeout_seconds=10.0)
    return metrics, model.facts()


async def test_kernels_and_graphs_are_logged_and_exported() -> None:
    """A server that has lost its graphs still answers, only more slowly."""
    metrics, facts = await published(GPU)

    assert (facts["cuda_kernels"], facts["cuda_graphs"]) == ("fused", {"image": 28, "text": 0})
    value = metrics.registry.get_sample_value
    assert value("alignserve_gpu_info", {"gpu": "GPU-5c2ea1a0", "kernels": "fused"}) == 1
    assert value("alignserve_cuda_graphs", {"modality": "image"}) == 28
    assert value("alignserve_cuda_graphs", {"modality": "text"}) == 0


async def test_a_cpu_has_neither() -> None:
    """The event and the metrics have nothing to say about it."""
    metrics, facts = await published(None)

    assert not {"cuda_kernels", "cuda_graphs"} & set(facts)
    assert metrics.registry.get_sample_value("alignserve_cuda_graphs", {"modality": "image"}) is None


def test_batch_sizes_are_measured_again_with_other_kernels(tmp_path: Path) -> None:
    """And without graphs, where launching a forward costs more than most batches."""
    for gpu in (GPU, GPU, GPU._replace(kernels="plain"), GPU._replace(graphs={"image": 0, "text": 0})):
        encoder = FakeEncoder()
        encoder.gpu, encoder.is_measurable = gpu, True

        load_warm(Settings(cache_dir=tmp_path, max_batch_size=2), partial(_loaded, encoder), "1.0")

    assert len(list((tmp_path / "tuning").iterdir())) == 3
