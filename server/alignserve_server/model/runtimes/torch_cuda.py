"""ALIGN on torch on an NVIDIA GPU: CUDA graphs, and copies that overlap another lane's computation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignserve_server.model.encoder import Embeddings
from alignserve_server.model.runtimes.device_errors import device_errors
from alignserve_server.model.runtimes.network import Network
from alignserve_server.model.runtimes.runtime import ExecutionConfig, Rescaling, RuntimeName, TokenArray
from alignserve_server.model.runtimes.static_forwards import Forward, MaxShapes, StaticForwards
from alignserve_server.model.runtimes.towers import Towers
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_LANES = 2  # while one computes, the other copies
_WARMUP_FORWARDS = 3  # before a capture: libraries create their handles and choose algorithms


class CudaRuntime:
    """Implements `Runtime` with torch on a GPU.

    Each lane copies its batch on its own stream; the forwards of all lanes run in order on one stream. So one
    batch is copied while another computes, and the GPU starts the next forward without waiting for Python.
    """

    name: RuntimeName = "torch"
    has_parallel_lanes = False

    def __init__(
        self, network: Network, execution: ExecutionConfig, rescaling: Rescaling, image_size: tuple[int, int]
    ) -> None:
        """Takes ownership of a float32 network, and captures its forwards for images of (height, width)."""
        # By default cuDNN rounds float32 convolutions to TF32, with a 10-bit mantissa.
        torch.backends.cudnn.allow_tf32 = False
        self.dtype, self.device = execution.dtype, execution.device
        self.lanes = execution.lanes or _LANES
        self._device = torch.device(self.device)
        self.gpu_uuid: str | None = f"GPU-{torch.cuda.get_device_properties(self._device).uuid}"
        self._compute = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # in torch
        self._turn = threading.Lock()  # on the compute stream, from a batch's input to its output
        self._lane = threading.local()
        max_shapes = MaxShapes(execution.max_batch_size, image_size, execution.max_text_tokens)
        with torch.inference_mode(), torch.cuda.stream(self._compute):
            self._towers = Towers(network, rescaling, self._device, getattr(torch, self.dtype))
            self._graphs = StaticForwards(self._towers, max_shapes, self._device)
            if execution.cuda_graphs:
                self._graphs.capture(partial(self._captured, torch.cuda.graph_pool_handle()))

    @property
    def memory_bytes(self) -> int:
        """Memory that torch uses on the GPU: weights, graphs, and memory kept for the next batch."""
        return torch.cuda.memory_reserved(self._device)

    @property
    def graph_batch_sizes(self) -> list[int]:
        """Batch sizes that have CUDA graphs."""
        return self._graphs.batch_sizes

    def enter_lane(self) -> None:
        """Creates the calling thread's stream for copies."""
        torch.cuda.set_device(self._device)
        self._lane.copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # in torch

    def release_memory(self) -> None:
        """Releases the memory that loading and the largest measured batch have left."""
        torch.cuda.empty_cache()

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return self._embed([pixels], self._graphs.embed_pixels, self._towers.embed_pixels)

    def embed_tokens(self, input_ids: TokenArray, attention_mask: TokenArray) -> Embeddings:
        return self._embed([input_ids, attention_mask], self._graphs.embed_tokens, self._towers.embed_tokens)

    def device_seconds(self) -> float | None:
        """Returns the GPU's time for the calling thread's latest batch."""
        return None

    @torch.inference_mode()
    def _embed(
        self,
        arrays: list[NDArray[Any]],
        replayed: Callable[..., torch.Tensor | None],
        eager: Callable[..., torch.Tensor],
    ) -> Embeddings:
        if not hasattr(self._lane, "copies"):
            self.enter_lane()
        # blocking: a waiting thread gives up its core
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # in torch
        with device_errors():
            with torch.cuda.stream(self._lane.copies):
                # pinned, since only then does a copy overlap with kernels
                inputs = [
                    torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)
                    for array in arrays
                ]
            with self._turn, torch.cuda.stream(self._compute):
                self._compute.wait_stream(self._lane.copies)
                embeddings = replayed(*inputs)
                if embeddings is None:
                    embeddings = eager(*inputs)
                output = torch.empty(embeddings.shape, dtype=embeddings.dtype, pin_memory=True)
                output.copy_(embeddings, non_blocking=True)
                done.record(self._compute)
            # Keeps the inputs alive until here: their memory must not be reused while they are read.
            done.synchronize()
            on_cpu: Embeddings = output.numpy().copy()  # callers must not keep pinned memory
            return on_cpu

    def _captured(self, pool: Any, forward: Forward) -> Forward:
        """Captures a forward as a CUDA graph; returns its replay.

        Graphs share a memory pool: they run one at a time, and each keeps its own output.
        """
        for _ in range(_WARMUP_FORWARDS):
            forward()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self._compute):
            output = forward()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay
