"""The runtime for GPUs on simulated CUDA: its graphs, buckets and lanes, without a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from alignserve_server.model import probe
from alignserve_server.model.align import AlignEncoder, LoadOptions, load_align
from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.model.encoder import l2_normalize
from alignserve_server.model.runtimes.torch_cuda import CudaRuntime
from structlog.testing import capture_logs

from tests.gpu.pretended_cuda import CUDA, Graph, SharedStreamError, Stream, pretended_cuda
from tests.model.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.model

MAX_BATCH_SIZE = 3

# The threads of a forward spin at its barriers, which makes it ten times slower on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few kilobytes."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("gpu") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Iterator[AlignEncoder]:
    """The checkpoint on `cuda`, with graphs of 1, 2 and 3 entries."""
    with pretended_cuda(), capture_logs() as events:
        yield load_align(
            resolve_checkpoint(str(folder)), LoadOptions(device="cuda", max_batch_size=MAX_BATCH_SIZE)
        )
    assert events == []


@pytest.fixture(scope="module")
def inputs(encoder: AlignEncoder) -> list[np.ndarray]:
    """The decoded images of the probe."""
    return [encoder.preprocess_image(content) for content in probe.images().values()]


def _runtime(encoder: AlignEncoder) -> CudaRuntime:
    assert isinstance(encoder._runtime, CudaRuntime)
    return encoder._runtime


def test_a_checkpoint_loads_as_on_a_gpu(encoder: AlignEncoder) -> None:
    """It loads in float16, proved against float32, with every batch size captured."""
    assert (encoder.info.device, encoder.info.dtype) == ("cuda:0", "float16")
    assert encoder.info.min_cosine_similarity > 0.999
    assert _runtime(encoder).graph_batch_sizes == [1, 2, 3]
    assert (encoder.lanes, encoder.has_parallel_lanes) == (2, False)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_batch_equals_single_images(encoder: AlignEncoder, inputs: list[np.ndarray], size: int) -> None:
    """Neither the bucket nor its padding changes a vector, nor does a batch larger than all buckets."""
    alone = np.concatenate([encoder.encode_images([pixels]) for pixels in inputs[:size]])

    together = encoder.encode_images(inputs[:size])

    assert (l2_normalize(alone) * l2_normalize(together)).sum(axis=1).min() > 0.9999


def test_a_batch_equals_single_texts(encoder: AlignEncoder) -> None:
    """This holds for texts of one token up to the limit, padded to their bucket."""
    texts = [encoder.tokenize(text, truncate=True).token_ids for text in probe.EMBEDDED_TEXTS]
    alone = np.concatenate([encoder.encode_texts([text]) for text in texts])

    together = encoder.encode_texts(texts)

    assert (l2_normalize(alone) * l2_normalize(together)).sum(axis=1).min() > 0.9999


def test_batches_within_the_buckets_are_replayed(
    encoder: AlignEncoder, inputs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run no operators outside the graph."""
    monkeypatch.setattr(_runtime(encoder)._towers, "embed_pixels", None)

    assert np.isfinite(encoder.encode_images(inputs[:3])).all()


def test_lanes_take_turns_with_the_graphs(encoder: AlignEncoder, inputs: list[np.ndarray]) -> None:
    """Two concurrent lanes always get their own vectors; neither uses the graphs while the other does."""
    jobs = [inputs[:2], inputs[2:5], inputs[5:6]]
    expected = [encoder.encode_images(job) for job in jobs]

    with ThreadPoolExecutor(encoder.lanes, initializer=encoder.enter_lane) as lanes:
        running = [lanes.submit(encoder.encode_images, job) for _ in range(8) for job in jobs]

    for number, job in enumerate(running):
        np.testing.assert_array_equal(job.result(), expected[number % len(jobs)])


def test_lanes_without_a_lock_are_detected(encoder: AlignEncoder, inputs: list[np.ndarray]) -> None:
    """This is the purpose of the simulation: a runtime without its lock fails."""
    compute = cast("Stream", _runtime(encoder)._compute)

    with compute.entered(), ThreadPoolExecutor(1) as lane, pytest.raises(SharedStreamError):
        lane.submit(encoder.encode_images, inputs[:1]).result()


def test_a_graph_does_not_see_new_values() -> None:
    """As on a GPU, a replay reads and writes the memory of the capture."""
    source, graph = torch.ones(3), Graph()
    with CUDA.graph(graph, pool=None, stream=Stream()):
        doubled = source * 2
    source.fill_(5)

    graph.replay()

    assert doubled.tolist() == [10, 10, 10]


def test_waiting_for_the_device_cannot_be_captured() -> None:
    """On a GPU the number does not exist yet during a capture."""
    with (
        CUDA.graph(Graph(), pool=None, stream=Stream()),
        pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
    ):
        torch.ones(1).item()


def test_a_stream_without_graphs_is_shared() -> None:
    """Only graphs have memory that two threads could overwrite."""
    stream, entered = Stream(), threading.Event()

    def enter() -> None:
        with stream.entered():
            entered.set()

    with stream.entered(), ThreadPoolExecutor(1) as thread:
        thread.submit(enter).result()

    assert entered.is_set()
