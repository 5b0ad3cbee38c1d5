"""ALIGN on torch on an NVIDIA GPU: CUDA graphs, and copies that overlap another lane's computation."""

from __future__ import annotations

import gc
import statistics
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from alignserve_server.model.encoder import Embeddings, GpuUse, PixelValues
from alignserve_server.model.probe import Reference
from alignserve_server.model.runtimes.cuda_graphs import ComputeStream
from alignserve_server.model.runtimes.cuda_lane import CudaLane
from alignserve_server.model.runtimes.device_errors import device_errors
from alignserve_server.model.runtimes.device_time import DeviceTime
from alignserve_server.model.runtimes.kernels.choice import Bench, choose_kernels, sample_pixels
from alignserve_server.model.runtimes.network import Network
from alignserve_server.model.runtimes.runtime import (
    ExecutionConfig,
    KernelsName,
    PreparedShape,
    Rescaling,
    RuntimeName,
    TokenArray,
)
from alignserve_server.model.runtimes.static_forwards import (
    Forward,
    StaticImages,
    StaticTexts,
    image_batch_sizes,
)
from alignserve_server.model.runtimes.towers import Towers

# Of one modality, one lane copies while the other computes; the third runs the other modality meanwhile.
_LANES, _LANES_PER_MODALITY = 3, 2
_HIGH_PRIORITY = -1
_IMAGES, _TEXTS = "images", "texts"
_WARMUP_RUNS, _TIMED_RUNS = 5, 11  # of a forward whose time is compared; an idle GPU lowers its clock
_TOKEN_BYTES = 2 * 8  # an id and its place in the mask, of int64


class CudaRuntime:
    """Implements `Runtime` with torch on a GPU.

    Each lane copies its batch on its own stream. The forwards of images run in order on one stream, and those
    of texts on another, which goes first: a text takes a tenth of an image's time, and does not wait for
    images that run already. So one batch is copied while another computes, and the GPU starts the next
    forward without waiting for Python.
    """

    name: RuntimeName = "torch"
    has_parallel_lanes = False
    lanes_per_modality: int | None = _LANES_PER_MODALITY

    def __init__(
        self, network: Network, execution: ExecutionConfig, rescaling: Rescaling, reference: Reference
    ) -> None:
        """Takes ownership of a float32 network, and captures its forwards for the reference's inputs.

        Raises:
            CaptureFailed: Its forwards cannot be captured.
            OutOfDeviceMemory: The weights do not fit.
            DeviceLost: The device failed.
        """
        _set_torch_flags()
        self.dtype, self.device = execution.dtype, execution.device
        self.lanes = execution.lanes or _LANES
        self._device: Final = torch.device(self.device)
        torch.cuda.set_device(self._device)  # else captures would also take memory of the first GPU
        self._uuid = f"GPU-{torch.cuda.get_device_properties(self._device).uuid}"
        self._images = ComputeStream(self._device)
        self._texts = ComputeStream(self._device, priority=_HIGH_PRIORITY)
        self._time = DeviceTime([_IMAGES, _TEXTS])
        self._lane = threading.local()
        self._has_graphs = execution.cuda_graphs
        images, texts = execution.max_image_batch_size, execution.max_text_batch_size
        image_size = reference.image_size
        self._input_bytes = max(
            images * 3 * image_size[0] * image_size[1], texts * execution.max_text_tokens * _TOKEN_BYTES
        )
        row_bytes = reference.embedding_dimension * np.dtype(np.float32).itemsize
        self._output_bytes = max(images, texts) * row_bytes
        with device_errors(), torch.inference_mode():
            with torch.cuda.stream(self._images.stream):
                self._towers = Towers(network, rescaling, self._device, getattr(torch, self.dtype))
                self._static_images = StaticImages(
                    self._towers.embed_pixels, images, image_size, self._device
                )
                self._static_texts = StaticTexts(
                    self._towers.embed_tokens, texts, execution.max_text_tokens, self._device
                )
                self.kernels = self._chosen_kernels(execution, image_size)
            self._images.stream.synchronize()  # texts read the weights on another stream
            if self._has_graphs:
                self._static_images.capture(self._images.captured)
                self._static_texts.capture(self._texts.captured)

    @property
    def gpu(self) -> GpuUse | None:
        """The GPU, the kernels of images, and the graphs that have been captured and not dropped."""
        graphs = {"image": len(self._static_images.shapes), "text": len(self._static_texts.shapes)}
        return GpuUse(self._uuid, self.kernels, graphs)

    @property
    def memory_bytes(self) -> int:
        """Memory that torch uses on the GPU: weights, graphs, and memory kept for the next batch."""
        return torch.cuda.memory_reserved(self._device)

    @property
    def prepared_shapes(self) -> Sequence[PreparedShape]:
        """The shapes that have CUDA graphs."""
        return [*self._static_images.shapes, *self._static_texts.shapes]

    def drop(self, shape: PreparedShape) -> None:
        """Removes the graph of a shape."""
        (self._static_images if shape.tokens is None else self._static_texts).drop(shape)

    def enter_lane(self) -> None:
        """Creates the calling thread's stream for copies."""
        torch.cuda.set_device(self._device)
        self._lane.state = CudaLane(self._device, self._input_bytes, self._output_bytes)

    def release_memory(self) -> None:
        """Releases the memory that loading and the largest measured batch have left."""
        self._lane = threading.local()  # with the loading thread's memory
        torch.cuda.empty_cache()

    def close(self) -> None:
        """Frees weights, graphs and caches."""
        del self._static_images, self._static_texts, self._towers, self._lane
        gc.collect()
        torch.cuda.empty_cache()

    def embed_pixels(self, batch: Sequence[PixelValues]) -> Embeddings:
        def embed(pixels: torch.Tensor) -> torch.Tensor:
            embeddings = self._static_images(pixels)
            return self._towers.embed_pixels(pixels) if embeddings is None else embeddings

        return self._embed(_IMAGES, self._images, batch, embed)

    def embed_tokens(self, input_ids: TokenArray, attention_mask: TokenArray) -> Embeddings:
        def embed(tokens: torch.Tensor) -> torch.Tensor:
            embeddings = self._static_texts(*tokens)
            return self._towers.embed_tokens(*tokens) if embeddings is None else embeddings

        return self._embed(_TEXTS, self._texts, [input_ids, attention_mask], embed)

    def device_seconds(self) -> float | None:
        """Returns the GPU's time for the calling thread's latest batch; see `DeviceTime`."""
        return self._current_lane().device_seconds

    def _chosen_kernels(self, execution: ExecutionConfig, image_size: tuple[int, int]) -> KernelsName:
        if execution.cuda_kernels == "plain":
            return "plain"
        limit = execution.max_image_batch_size
        pixels, sizes = sample_pixels(limit, image_size, self._device), image_batch_sizes(limit)
        bench = Bench(self._towers.dtype, pixels, sizes, self._seconds_of, execution.cache_dir)
        return choose_kernels(self._towers, execution.cuda_kernels, bench)

    @torch.inference_mode()
    def _embed(
        self,
        modality: str,
        compute: ComputeStream,
        rows: Sequence[NDArray[Any]],
        embed: Callable[[torch.Tensor], torch.Tensor],
    ) -> Embeddings:
        lane = self._current_lane()
        lane.device_seconds = None
        begun: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # in torch
        # blocking: a waiting thread gives up its core
        done: Any = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        with device_errors(), lane.settled_before_reuse(compute.stream):
            inputs = lane.send(rows)
            with compute.turn, torch.cuda.stream(compute.stream):
                compute.stream.wait_stream(lane.copies)
                begun.record(compute.stream)
                output = lane.receive(embed(inputs))
                done.record(compute.stream)
            done.synchronize()
            lane.device_seconds = self._time.charge(modality, begun, done)
            on_cpu: Embeddings = output.numpy().copy()  # the lane's next batch overwrites it
            return on_cpu

    def _current_lane(self) -> CudaLane:
        if not hasattr(self._lane, "state"):
            self.enter_lane()
        lane: CudaLane = self._lane.state
        return lane

    def _seconds_of(self, forward: Forward) -> float:
        """Returns the median time of a forward of images as it would be served; its graph is not kept."""
        replay = self._images.tried(forward) if self._has_graphs else forward
        times: list[float] = []
        with torch.cuda.stream(self._images.stream):
            for _ in range(_WARMUP_RUNS):
                replay()
            for _ in range(_TIMED_RUNS):
                begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                begun.record()
                replay()
                done.record()
                done.synchronize()
                times.append(begun.elapsed_time(done) / 1e3)
        return statistics.median(times)


def _set_torch_flags() -> None:
    """Sets what torch keeps for the whole process."""
    # By default cuDNN rounds float32 convolutions to TF32, with a 10-bit mantissa.
    torch.backends.cudnn.allow_tf32 = False
    # torch prefers cuDNN's attention on Hopper, which plans every new shape for 0.3 to 0.5 s. Without it, it
    # uses efficient attention, which takes a broadcast mask, and where that does not fit, matrix products.
    torch.backends.cuda.enable_cudnn_sdp(False)
