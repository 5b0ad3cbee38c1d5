"""The runtime for GPUs gives the numbers of a CPU for any batch and lane, and survives a lack of memory.

Without a GPU these tests run on simulated CUDA, which is described in `tests.pretended_cuda`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from alignserve_server.model import probe
from alignserve_server.model.align import AlignEncoder, LoadOptions, load_align
from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.model.encoder import (
    CaptureFailed,
    DeviceLost,
    OutOfDeviceMemory,
    TokenIds,
    l2_normalize,
)
from alignserve_server.model.runtimes import network, torch_cpu, torch_cuda
from alignserve_server.model.runtimes.cuda_graphs import ComputeStream
from alignserve_server.model.runtimes.runtime import KernelsSetting, PreparedShape
from alignserve_server.model.runtimes.static_forwards import Forward
from alignserve_server.model.runtimes.torch_cuda import CudaRuntime
from alignserve_server.model.runtimes.towers import Towers
from alignserve_server.observability.gpu import watch_gpu
from alignserve_server.observability.metrics import Metrics
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from tests.model.conftest import Pair, Reference
from tests.model.tiny import write_tiny_checkpoint
from tests.pretended_cuda import Device, Event, Fault, Stream, pretended_cuda

HAS_GPU = torch.cuda.is_available()

pytestmark = [pytest.mark.model]
on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU and a CUDA build of torch"),
]
simulated = pytest.mark.skipif(HAS_GPU, reason="needs a GPU that fails on request")

TEXTS = ["cat", "the dog of a cat.", "the cat " * 12, "the dog, of a cat! " * 40]
MAX_BATCH_SIZE = 6
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}  # of an element of a normalized vector
OUT_OF_MEMORY = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CUDA": RuntimeError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
}
ILLEGAL_ACCESS = RuntimeError("CUDA error: an illegal memory access was encountered")

Load = Callable[..., AlignEncoder]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few kilobytes."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("cuda") / "tiny")


def onto_cuda(folder: Path, max_batch_size: int = MAX_BATCH_SIZE, **options: Any) -> AlignEncoder:
    """Loads a checkpoint onto the GPU, by default in float32."""
    options = {
        "dtype": "float32",
        "max_image_batch_size": max_batch_size,
        "max_text_batch_size": max_batch_size,
        "cuda_kernels": "plain",
        **options,
    }
    return load_align(resolve_checkpoint(str(folder)), LoadOptions(device="cuda", runtime="torch", **options))


@pytest.fixture(scope="module")
def cuda() -> Iterator[Device | None]:
    """Simulated CUDA if there is no GPU."""
    with nullcontext() if HAS_GPU else pretended_cuda() as simulated_device:
        yield simulated_device


@pytest.fixture
def device(cuda: Device | None) -> Iterator[Device]:
    """The simulated device, to fail on request."""
    assert cuda is not None
    yield cuda
    cuda.reset()


@pytest.fixture(scope="module")
def encoder(cuda: Device | None, folder: Path) -> AlignEncoder:
    """An encoder with graphs for up to 6 entries."""
    return onto_cuda(folder)


@pytest.fixture(scope="module")
def pixels(encoder: AlignEncoder) -> list[np.ndarray]:
    """Decoded images."""
    return [encoder.preprocess_image(content) for content in probe.images().values()][:MAX_BATCH_SIZE]


def runtime_of(encoder: AlignEncoder) -> CudaRuntime:
    return cast("CudaRuntime", encoder._runtime)


def tokens_of(encoder: AlignEncoder, texts: Sequence[str] = TEXTS) -> list[TokenIds]:
    return [encoder.tokenize(text, truncate=True).token_ids for text in texts]


def embed(encoder: AlignEncoder, inputs: Sequence[Any]) -> np.ndarray:
    """Returns normalized vectors of decoded images or of texts."""
    if isinstance(inputs[0], str):
        return l2_normalize(encoder.encode_texts(tokens_of(encoder, inputs)))
    return l2_normalize(encoder.encode_images(inputs))


def failing(device: Device, *faults: Fault) -> Device:
    """Makes the device meet only these faults from now on."""
    device.faults[:] = faults
    return device


# Numbers


@pytest.mark.long
@pytest.mark.parametrize("kernels", ["epilogues", "fused", "auto"])
@pytest.mark.usefixtures("large_tiles")
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # as in test_cuda_kernels
def test_faster_kernels_give_the_same_embeddings(cuda, folder, encoder, kernels, monkeypatch):
    """They are captured in the graphs like torch's, and the fewest operators are the fastest."""
    if not HAS_GPU:  # a simulated clock is exact, and the interpreter takes seconds for a forward
        monkeypatch.setattr(torch_cuda, "_WARMUP_RUNS", 0)
        monkeypatch.setattr(torch_cuda, "_TIMED_RUNS", 1)
    pixels = [encoder.preprocess_image(content) for content in list(probe.images().values())[:2]]

    faster = onto_cuda(folder, max_batch_size=2, cuda_kernels=kernels)

    if not HAS_GPU or kernels != "auto":
        assert runtime_of(faster).kernels == ("fused" if kernels == "auto" else kernels)
    np.testing.assert_allclose(embed(faster, pixels), embed(encoder, pixels), rtol=0, atol=BOUNDS["float32"])


@pytest.fixture(scope="module")
def expected(folder: Path) -> Any:
    """The reference's outputs for the first two images of the probe, and for the texts."""
    return Reference.load(folder).forward(list(probe.images().values())[:2], TEXTS)


@pytest.mark.parametrize(
    ("dtype", "cuda_graphs"),
    [
        ("float32", True),
        ("float16", True),
        ("bfloat16", True),
        ("float32", False),
        pytest.param("float16", False, marks=pytest.mark.long),
        pytest.param("bfloat16", False, marks=pytest.mark.long),
    ],
)
def test_embeddings_equal_the_reference(cuda, folder, expected, dtype, cuda_graphs):
    """Vectors are within the bound of each data type, with and without graphs."""
    contents = list(probe.images().values())[:2]

    encoder = onto_cuda(
        folder, dtype=dtype, cuda_graphs=cuda_graphs, max_batch_size=2, min_cosine_similarity=0.99
    )

    images = embed(encoder, [encoder.preprocess_image(content) for content in contents])
    texts = embed(encoder, TEXTS)
    assert encoder.info.dtype == dtype
    assert bool(runtime_of(encoder).prepared_shapes) == cuda_graphs
    np.testing.assert_allclose(images, expected.image_embeds.numpy(), rtol=0, atol=BOUNDS[dtype])
    np.testing.assert_allclose(texts, expected.text_embeds.numpy(), rtol=0, atol=BOUNDS[dtype])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_vectors_do_not_depend_on_the_batch(encoder, pixels, size):
    """Vectors do not depend on the bucket, its padding, or a batch larger than all buckets."""
    for inputs in (pixels, TEXTS):
        batch = [inputs[i % len(inputs)] for i in range(size)]
        alone = np.concatenate([embed(encoder, [given]) for given in batch])

        together = embed(encoder, batch)

        assert (1 - (alone * together).sum(axis=1)).max() <= 1e-5


def test_every_shape_is_captured(encoder):
    """Images have a graph for each size, and texts for each size and length."""
    shapes = runtime_of(encoder).prepared_shapes

    assert [shape.batch_size for shape in shapes if shape.tokens is None] == [1, 2, 3, 4, 5, 6]
    assert {shape.tokens for shape in shapes} == {None, 8, 16, 32, 64}
    assert {shape.batch_size for shape in shapes if shape.tokens == 8} == {1, 2, 4, 6}


def test_batches_are_replayed(encoder, pixels, monkeypatch):
    """A batch that fits into a bucket runs only the graph."""
    monkeypatch.setattr(runtime_of(encoder)._towers, "embed_pixels", None)
    monkeypatch.setattr(runtime_of(encoder)._towers, "embed_tokens", None)

    assert np.isfinite(embed(encoder, pixels[:3])).all()
    assert np.isfinite(embed(encoder, TEXTS)).all()


def test_lanes_do_not_mix_their_batches(encoder, pixels):
    """Three concurrent lanes always get their own vectors, of either modality."""
    jobs = [pixels[:2], pixels[2:5], TEXTS, TEXTS[::-1], TEXTS[:1]]
    expected = [embed(encoder, inputs) for inputs in jobs]

    with ThreadPoolExecutor(encoder.lanes, initializer=encoder.enter_lane) as lanes:
        running = [(i, lanes.submit(embed, encoder, jobs[i])) for _ in range(10) for i in range(len(jobs))]

    assert (encoder.lanes, encoder.lanes_per_modality) == (3, 2)
    for i, job in running:
        np.testing.assert_allclose(job.result(), expected[i], rtol=0, atol=1e-5)


def test_cudnns_attention_is_off(encoder):
    """It would plan every new shape of texts, for up to half a second each."""
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


# Streams and lanes


def test_texts_do_not_wait_for_images(encoder):
    """A batch of texts runs although images hold their stream, on a stream that goes first."""
    with runtime_of(encoder)._images.turn, ThreadPoolExecutor(1) as lane:
        vectors = lane.submit(embed, encoder, TEXTS).result(timeout=30)

    assert np.isfinite(vectors).all()
    assert runtime_of(encoder)._texts.stream.priority < runtime_of(encoder)._images.stream.priority


@simulated
def test_every_thread_chooses_its_gpu_first(folder, device, pixels):
    """One that has not, such as one that loads onto the second GPU, takes memory of the first as well."""
    device.strangers.clear()

    with ThreadPoolExecutor(1) as loader, ThreadPoolExecutor(1) as lane:
        encoder = loader.submit(onto_cuda, folder, max_batch_size=1).result()
        lane.submit(encoder.encode_images, pixels[:1]).result()

    assert device.strangers == set()


@simulated
def test_a_lane_reuses_its_memory(encoder, device, pixels):
    """After the first batch, no batch pins or allocates anything, whatever its size."""
    encoder.encode_images(pixels[:1])
    failing(device, *(Fault(step, ILLEGAL_ACCESS, times=None) for step in ("pin", "allocate")))

    assert np.isfinite(encoder.encode_images(pixels[:2])).all()
    assert np.isfinite(encoder.encode_texts(tokens_of(encoder)[:2])).all()


def test_callers_keep_their_vectors(encoder, pixels):
    """The next batch does not overwrite a result."""
    first = encoder.encode_images(pixels[:1])
    before = first.copy()

    encoder.encode_images(pixels[1:2])

    np.testing.assert_array_equal(first, before)


@simulated
@pytest.mark.parametrize(
    ("owner", "method"), [(Stream, "wait_stream"), (Event, "synchronize")], ids=["wait", "synchronize"]
)
def test_missing_synchronization_is_detected(encoder, pixels, monkeypatch, owner, method):
    """This is the purpose of the simulation: without one of its waits the runtime gives wrong vectors."""
    expected = encoder.encode_images(pixels[:2])
    encoder.encode_images(pixels[2:4])
    monkeypatch.setattr(owner, method, lambda *given: None)
    monkeypatch.setattr(Event, "elapsed_time", lambda *given: 0.0)

    assert not np.allclose(encoder.encode_images(pixels[:2]), expected)


# Device time


@simulated
def test_device_time_excludes_waiting_for_another_lane(encoder, pixels):
    """A batch is charged its own forward, whether it runs by itself or behind another lane's."""

    def seconds() -> float:
        encoder.encode_images(pixels[:3])
        return encoder.device_seconds() or 0.0

    alone = seconds()
    with ThreadPoolExecutor(2) as lanes:
        together = [lane.result() for lane in [lanes.submit(seconds) for _ in range(8)]]

    assert alone > 0
    assert together == pytest.approx([alone] * 8)


def test_device_time_is_of_the_callers_latest_batch(encoder, pixels):
    """Each lane has its own, and none before its first batch."""
    encoder.encode_images(pixels)
    images = encoder.device_seconds()
    encoder.encode_texts(tokens_of(encoder))

    with ThreadPoolExecutor(1) as other:
        assert other.submit(encoder.device_seconds).result() is None
    assert images > 0
    assert 0 < encoder.device_seconds() != images


# Failures


@simulated
def test_graphs_that_lack_memory_are_left_out_one_by_one(folder, device, pixels):
    """Smaller graphs are captured, and larger batches run without."""
    device.capture_limit_bytes, device.lack = 1_200_000, lambda: OUT_OF_MEMORY["cuDNN"]

    with capture_logs() as events:
        encoder = onto_cuda(folder, max_batch_size=4)

    images = [shape.batch_size for shape in runtime_of(encoder).prepared_shapes if shape.tokens is None]
    assert images == [1, 2]
    assert {event["event"] for event in events} == {"cuda_graph_too_large"}
    assert [event["batch_size"] for event in events if event["tokens"] is None] == [4, 3]
    assert np.isfinite(encoder.encode_images(pixels[:4])).all()


@simulated
@pytest.mark.parametrize("step", ["capture", "capture_end"])
def test_a_capture_that_fails_otherwise_asks_for_a_new_process(folder, device, step):
    """The context may be left unusable, so nothing else is tried in this process."""
    failing(device, Fault(step, RuntimeError("CUDA error: operation not permitted"), after=1))

    with pytest.raises(CaptureFailed, match="operation not permitted"):
        onto_cuda(folder, max_batch_size=2)


@simulated
def test_whatever_a_capture_raises_asks_for_a_new_process(folder, device):
    """Triton's errors, such as that of a kernel that needs too much shared memory, are not RuntimeErrors."""
    failing(device, Fault("capture", Exception("out of resource: shared memory"), after=1))

    with pytest.raises(CaptureFailed, match="out of resource"):
        onto_cuda(folder, max_batch_size=2)


@simulated
def test_other_threads_may_use_the_device_during_a_capture(encoder, device, pixels):
    """Such as those of another model in the same process."""
    stream, source = ComputeStream(torch.device("cpu")), torch.ones(2)

    with ThreadPoolExecutor(1) as other, torch.inference_mode():

        def forward() -> torch.Tensor:
            other.submit(encoder.encode_images, pixels[:1]).result()
            return source + 1

        replay = stream.captured(forward)
        with device.cuda.stream(stream.stream):
            output = replay()
            stream.stream.synchronize()

    assert output.tolist() == [2, 2]


@simulated
def test_memory_that_lacks_while_a_capture_breaks_asks_for_a_new_process(folder, device):
    """If the capture cannot even be ended, no smaller one can begin."""
    broken = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    failing(device, Fault("capture", OUT_OF_MEMORY["torch"]), Fault("capture_end", broken))

    with pytest.raises(CaptureFailed, match="previous error"):
        onto_cuda(folder, max_batch_size=2)


@simulated
@pytest.mark.parametrize("step", ["operation", "capture", "synchronize"])
def test_a_device_lost_while_loading_is_lost(folder, device, step):
    """A sticky error is not taken for a failed capture or checkpoint."""
    failing(device, Fault(step, ILLEGAL_ACCESS, after=3, is_sticky=True))

    with pytest.raises(DeviceLost, match="illegal memory access"):
        onto_cuda(folder, max_batch_size=2)


@simulated
@pytest.mark.parametrize("step", ["operation", "replay", "synchronize"])
@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=list(OUT_OF_MEMORY))
def test_a_batch_that_lacks_memory_does_not_spoil_the_next(encoder, device, pixels, step, error):
    """It raises OutOfDeviceMemory, without a time; the same lane then embeds as before."""
    expected = encoder.encode_images(pixels[:2])
    failing(device, Fault(step, error))

    with pytest.raises(OutOfDeviceMemory):
        encoder.encode_images(pixels[2:4])

    assert encoder.device_seconds() is None
    np.testing.assert_array_equal(encoder.encode_images(pixels[:2]), expected)


@simulated
def test_a_lost_device_stays_lost(encoder, device, pixels):
    """Every later batch of any lane raises DeviceLost too."""
    failing(device, Fault("replay", ILLEGAL_ACCESS, is_sticky=True))

    with ThreadPoolExecutor(1) as lane:
        for encode in (
            partial(encoder.encode_images, pixels[:1]),
            partial(encoder.encode_texts, tokens_of(encoder)[:1]),
        ):
            with pytest.raises(DeviceLost):
                encode()
            with pytest.raises(DeviceLost):
                lane.submit(encode).result()


# The guard


@pytest.fixture
def spoil(monkeypatch) -> Callable[[Callable[[tuple[int, ...]], bool]], None]:
    """Makes the graphs wrong whose input's shape fulfils a condition."""

    def spoil(is_wrong: Callable[[tuple[int, ...]], bool]) -> None:
        captured = ComputeStream.captured

        def wrong(stream: ComputeStream, forward: Forward) -> Forward:
            replay = captured(stream, forward)
            shape = tuple(cast("partial[torch.Tensor]", forward).args[0].shape)
            return (lambda: replay().neg()) if is_wrong(shape) else replay

        monkeypatch.setattr(ComputeStream, "captured", wrong)

    return spoil


@simulated
def test_graphs_that_are_wrong_are_dropped(folder, device, pixels, spoil):
    """One wrong graph of images and one of texts are found, named and not used; the model is served."""
    spoil(lambda shape: shape == (2, 40, 40, 3) or shape == (1, 32))

    with capture_logs() as events:
        encoder = onto_cuda(folder, max_batch_size=3)

    (event,) = events
    assert (event["event"], event["batches"]) == ("cuda_graphs_inexact", ["2", "1 x 32"])
    assert not {PreparedShape(2), PreparedShape(1, 32)} & set(runtime_of(encoder).prepared_shapes)
    assert encoder.gpu is not None
    assert (encoder.gpu.kernels, encoder.gpu.graphs["image"]) == ("plain", 2)
    assert encoder.info.min_cosine_similarity > 0.999
    expected = np.concatenate([encoder.encode_images([one]) for one in pixels[:2]])
    np.testing.assert_allclose(encoder.encode_images(pixels[:2]), expected, rtol=1e-4, atol=1e-4)


@simulated
def test_graphs_outlive_the_workspaces_of_their_stream(encoder, device):
    """Torch frees them with the first graph that is destroyed, or with the thread that captured it."""
    expected = embed(encoder, TEXTS)

    device.clear_workspaces()

    np.testing.assert_array_equal(embed(encoder, TEXTS), expected)


@simulated
def test_a_data_type_whose_every_forward_is_wrong_is_replaced(folder, device, monkeypatch):
    """The next configuration loads after the first has been freed: weights, graphs and lanes."""
    towers: list[weakref.ref[Towers]] = []
    alive: list[int] = []
    load = network.load_network

    def make(*given: Any) -> Towers:
        one = Towers(*given)
        towers.append(weakref.ref(one))
        if len(towers) == 1:
            one.text.projection.weighted.weight.neg_()
        return one

    def load_network(path: Path) -> Any:
        alive.append(sum(one() is not None for one in towers))
        return load(path)

    monkeypatch.setattr(torch_cuda, "Towers", make)
    monkeypatch.setattr(network, "load_network", load_network)

    with capture_logs() as events:
        encoder = onto_cuda(folder, dtype="float16", max_batch_size=2)

    assert [event["event"] for event in events] == ["cuda_graphs_inexact", "cosine_similarity_too_low"]
    assert encoder.info.dtype == "float32"
    assert alive == [0, 0]


@simulated
def test_the_heap_is_trimmed_once_the_weights_are_on_the_gpu(folder, device, monkeypatch):
    """The host keeps no second copy of the weights."""
    trimmed: list[int] = []
    monkeypatch.setattr(torch_cpu, "trim_heap", lambda: trimmed.append(1))

    onto_cuda(folder, max_batch_size=1)

    assert trimmed


# On a GPU only


@pytest.mark.usefixtures("encoder")
class TestOnAGpu:
    """What the simulation does not have."""

    pytestmark = on_a_gpu

    @pytest.mark.parametrize("dtype", list(BOUNDS))
    def test_the_embedded_checkpoint_equals_the_reference(self, mini: Pair, photos, dtype):
        """Vectors of real weights are within the bound of each data type."""
        expected = mini.reference.forward(list(photos.values()), TEXTS)
        # faster kernels take seconds to compile, in each data type
        kernels: KernelsSetting = "auto" if dtype == "float16" else "plain"
        options = LoadOptions(
            device="cuda", runtime="torch", dtype=dtype, cuda_kernels=kernels, min_cosine_similarity=0.99
        )

        encoder = load_align(mini.checkpoint, options)

        images = embed(encoder, [encoder.preprocess_image(content) for content in photos.values()])
        np.testing.assert_allclose(images, expected.image_embeds.numpy(), rtol=0, atol=BOUNDS[dtype])
        texts = embed(encoder, TEXTS)
        np.testing.assert_allclose(texts, expected.text_embeds.numpy(), rtol=0, atol=BOUNDS[dtype])

    def test_memory_counts_weights_and_graphs(self, encoder):
        """The reported device memory is at least the size of the weights."""
        assert encoder.device_memory_bytes > runtime_of(encoder)._towers.nbytes

    def test_the_gpu_is_found_by_nvidias_library(self, encoder):
        """The GPU's UUID is known to NVML, and the model's memory is within the GPU's."""
        metrics = Metrics(CollectorRegistry())

        watch_gpu(encoder.gpu.uuid, metrics)

        used = metrics.registry.get_sample_value(
            "alignserve_gpu_memory_used_bytes", {"gpu": encoder.gpu.uuid}
        )
        assert used >= encoder.device_memory_bytes

    def test_batch_sizes_that_lack_memory_are_survived(self, encoder, pixels):
        """After a batch that cannot fit, the lane still embeds as before."""
        expected = encoder.encode_images(pixels[:2])
        with pytest.raises(OutOfDeviceMemory):
            runtime_of(encoder)._embed(
                "images",
                runtime_of(encoder)._images,
                pixels[2:4],
                lambda _: torch.empty(1 << 46, dtype=torch.uint8, device="cuda"),
            )

        np.testing.assert_allclose(encoder.encode_images(pixels[:2]), expected, rtol=0, atol=1e-5)
