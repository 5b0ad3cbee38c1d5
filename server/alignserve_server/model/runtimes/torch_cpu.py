"""ALIGN on torch: loading, and the runtime for CPUs. The runtime for GPUs is in `torch_cuda`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

import torch

from alignserve_server.host.cores import cpu_count
from alignserve_server.model.checkpoint import Checkpoint
from alignserve_server.model.encoder import Embeddings, GpuUse, PixelValues
from alignserve_server.model.reference import make_reference
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes import onednn
from alignserve_server.model.runtimes.device_errors import device_errors
from alignserve_server.model.runtimes.memory import trim_heap
from alignserve_server.model.runtimes.network import Network
from alignserve_server.model.runtimes.runtime import (
    ExecutionConfig,
    LoadedRuntime,
    PreparedShape,
    Rescaling,
    Runtime,
    RuntimeName,
    TokenArray,
    stacked,
)
from alignserve_server.model.runtimes.torch_bfloat16 import round_towers
from alignserve_server.model.runtimes.torch_cuda import CudaRuntime
from alignserve_server.model.runtimes.towers import Towers

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h


def load(checkpoint: Checkpoint, execution: ExecutionConfig, rescaling: Rescaling) -> LoadedRuntime:
    """Loads a checkpoint onto a device.

    Raises:
        CheckpointError: Its weights or its tokenizer cannot be served.
    """
    network = networks.load_network(checkpoint.folder)
    reference = make_reference(checkpoint, network)
    network = networks.optimized(network)
    execution = replace(execution, max_text_tokens=reference.max_text_tokens)
    runtime: Runtime
    if execution.device == "cpu":
        runtime = CpuRuntime(network, execution, rescaling)
    else:
        runtime = CudaRuntime(network, execution, rescaling, reference)
        del network  # its weights are on the GPU
        trim_heap()
    return LoadedRuntime(runtime, reference, checkpoint.fingerprint(runtime="torch", dtype=execution.dtype))


class CpuRuntime:
    """Implements `Runtime` with torch on a CPU."""

    name: RuntimeName = "torch"
    device = "cpu"
    has_parallel_lanes = True
    lanes_per_modality: int | None = None
    prepared_shapes: Sequence[PreparedShape] = ()
    gpu: GpuUse | None = None

    def __init__(self, network: Network, execution: ExecutionConfig, rescaling: Rescaling) -> None:
        """Takes ownership of a float32 network."""
        _keep_freed_memory()
        self.dtype = execution.dtype
        # One thread each: two lanes outperform one lane with two threads, which meet at hundreds of barriers.
        self._threads_per_lane = execution.threads_per_lane or 1
        self.lanes = execution.lanes or max(1, cpu_count() // self._threads_per_lane)
        dtype: torch.dtype = getattr(torch, self.dtype)
        is_bfloat16 = dtype is torch.bfloat16
        self._towers = Towers(
            network, rescaling, torch.device("cpu"), torch.float32 if is_bfloat16 else dtype
        )
        if is_bfloat16:
            round_towers(self._towers)
        if onednn.is_available(dtype):
            onednn.fuse(self._towers)
        for parameter in self._towers.parameters():
            # Few weights are still as loaded, but they would keep the whole weights file in memory.
            parameter.data = parameter.data.clone()

    @property
    def memory_bytes(self) -> int:
        """Memory that the weights use."""
        return self._towers.nbytes

    def enter_lane(self) -> None:
        """Limits the calling thread's forwards to the threads of a lane."""
        torch.set_num_threads(self._threads_per_lane)

    def release_memory(self) -> None:
        """Releases the memory that the largest measured batch has left."""
        trim_heap()

    def drop(self, shape: PreparedShape) -> None:
        """Has nothing to drop."""

    def close(self) -> None:
        """Frees the towers."""
        del self._towers
        trim_heap()

    @torch.inference_mode()
    def embed_pixels(self, batch: Sequence[PixelValues]) -> Embeddings:
        with device_errors():
            return self._towers.embed_pixels(torch.from_numpy(stacked(batch))).numpy()

    @torch.inference_mode()
    def embed_tokens(self, input_ids: TokenArray, attention_mask: TokenArray) -> Embeddings:
        with device_errors():
            ids, mask = torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
            return self._towers.embed_tokens(ids, mask).numpy()

    def device_seconds(self) -> float | None:
        """Returns None: a call's duration is the CPU's time."""
        return None


def _keep_freed_memory() -> None:
    """Makes glibc keep memory that torch frees, in this process.

    By default it returns large blocks to the kernel, which then zeroes them page by page for the next
    forward: batches become slower than single images, and single images lose a quarter. See `man mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # only glibc has it
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
            mallopt(option, value)
