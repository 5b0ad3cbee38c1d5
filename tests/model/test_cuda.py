"""A GPU gives the same numbers as a CPU, with CUDA graphs, for any batch and lane."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from alignserve_server.model.align import AlignEncoder, LoadOptions, load_align
from alignserve_server.model.encoder import l2_normalize
from alignserve_server.observability.gpu import watch_gpu
from alignserve_server.observability.metrics import Metrics
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from tests.model.conftest import Pair

pytestmark = [
    pytest.mark.model,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch"),
]

TEXTS = ["cat", "a photo of a dog.", "the cat " * 12, "of rockets and dogs, " * 40]
MAX_BATCH_SIZE = 6
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}  # of an element of a normalized vector


@pytest.fixture(scope="module")
def load(mini: Pair) -> Callable[..., AlignEncoder]:
    """Loads the embedded checkpoint onto the GPU."""

    def load_onto_gpu(**options: Any) -> AlignEncoder:
        options = {
            "dtype": "float32",
            "max_image_batch_size": MAX_BATCH_SIZE,
            "max_text_batch_size": MAX_BATCH_SIZE,
            **options,
        }
        return load_align(mini.checkpoint, LoadOptions(device="cuda", runtime="torch", **options))

    return load_onto_gpu


@pytest.fixture(scope="module")
def encoder(load) -> AlignEncoder:
    """An encoder in float32, with graphs for 1, 2, 4 and 6 entries."""
    return load()


def embed(encoder: AlignEncoder, inputs: list) -> np.ndarray:
    if isinstance(inputs[0], str):
        return l2_normalize(
            encoder.encode_texts([encoder.tokenize(text, truncate=True).token_ids for text in inputs])
        )
    return l2_normalize(encoder.encode_images([encoder.preprocess_image(content) for content in inputs]))


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_embeddings_equal_the_reference(load, mini, photos, dtype, cuda_graphs):
    """Vectors are within the bound of each data type, with and without graphs."""
    expected = mini.reference.forward(list(photos.values()), TEXTS)

    encoder = load(dtype=dtype, cuda_graphs=cuda_graphs, min_cosine_similarity=0.99)

    assert encoder.info.dtype == dtype
    for inputs, embeds in ((list(photos.values()), expected.image_embeds), (TEXTS, expected.text_embeds)):
        np.testing.assert_allclose(embed(encoder, inputs), embeds.numpy(), rtol=0, atol=BOUNDS[dtype])


def test_every_batch_size_is_captured(load):
    """All graphs are captured before the first call, and none is missing silently."""
    with capture_logs() as events:
        encoder = load()

    assert encoder._runtime.graph_batch_sizes == [1, 2, 4, 6]
    assert events == []


def test_batches_are_replayed(encoder, photos, monkeypatch):
    """A batch that fits into a bucket runs only the graph."""
    monkeypatch.setattr(encoder._runtime._towers, "embed_pixels", None)

    assert np.isfinite(embed(encoder, list(photos.values())[:3])).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_vectors_do_not_depend_on_the_batch(encoder, photos, size):
    """Vectors do not depend on the bucket, its padding, or a batch larger than all buckets."""
    for inputs in (list(photos.values()), TEXTS):
        batch = [inputs[i % len(inputs)] for i in range(size)]
        alone = np.concatenate([embed(encoder, [given]) for given in batch])

        together = embed(encoder, batch)

        assert (1 - (alone * together).sum(axis=1)).max() <= 1e-5


def test_lanes_do_not_mix_their_batches(encoder, photos):
    """Two concurrent lanes always get their own vectors."""
    jobs = [list(photos.values())[:2], list(photos.values())[2:5], TEXTS, TEXTS[::-1]]
    expected = [embed(encoder, inputs) for inputs in jobs]

    with ThreadPoolExecutor(encoder.lanes, initializer=encoder.enter_lane) as lanes:
        running = [(i, lanes.submit(embed, encoder, jobs[i])) for _ in range(25) for i in range(len(jobs))]

    assert encoder.lanes == 2
    for i, job in running:
        np.testing.assert_allclose(job.result(), expected[i], rtol=0, atol=1e-5)


def test_memory_counts_weights_and_graphs(encoder):
    """The reported device memory is at least the size of the weights."""
    assert encoder.device_memory_bytes > encoder._runtime._towers.nbytes


def test_the_gpu_is_found_by_nvidias_library(encoder):
    """The GPU's UUID is known to NVML, and the model's memory is within the GPU's."""
    metrics = Metrics(CollectorRegistry())

    watch_gpu(encoder.gpu_uuid, metrics)

    used = metrics.registry.get_sample_value("alignserve_gpu_memory_used_bytes", {"gpu": encoder.gpu_uuid})
    assert used >= encoder.device_memory_bytes
