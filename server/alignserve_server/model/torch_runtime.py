"""ALIGN on torch: CPUs and GPUs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from alignserve_server.model import network as networks
from alignserve_server.model.checkpoint import Checkpoint
from alignserve_server.model.encoder import Embeddings, OutOfDeviceMemory
from alignserve_server.model.memory import trim_heap
from alignserve_server.model.network import Network
from alignserve_server.model.runtime import (
    Loaded,
    Placement,
    Probe,
    Rescaling,
    RuntimeName,
    TokenArray,
    cpu_count,
)

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")  # in texts of a plain RuntimeError


def cuda_device(index: int | None) -> str | None:
    """Returns the name of a GPU, of the first one for None; or None if there is no GPU at all.

    Raises:
        ValueError: There is no GPU of that number.
    """
    if index is None and not torch.cuda.is_available():
        return None
    if (index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device cuda:{index} does not exist; torch sees {torch.cuda.device_count()} GPUs")
    return f"cuda:{index or 0}"


def load(checkpoint: Checkpoint, placement: Placement, rescaling: Rescaling, probe: Probe) -> Loaded:
    """Loads a checkpoint onto a device.

    Raises:
        CheckpointError: Its weights cannot be served.
    """
    network = networks.load_network(checkpoint.folder)
    reference = networks.reference_embeddings(network, probe, rescaling)
    dimension, temperature = networks.embedding_dimension(network), network.temperature.item()
    runtime = TorchRuntime(networks.optimized(network), placement, rescaling)
    return Loaded(runtime, reference, temperature, dimension)


class TorchRuntime:
    """Implements `Runtime` with torch."""

    name: RuntimeName = "torch"

    def __init__(self, network: Network, placement: Placement, rescaling: Rescaling) -> None:
        """Takes over a float32 network and moves it to its place."""
        self.dtype, self.device = placement.dtype, placement.device
        # On a CPU, lanes of one thread each: several threads of a forward meet at barriers, where all wait
        # for one that something else has driven off its core. Two such lanes also do more than one with two.
        self._threads_per_lane = placement.threads_per_lane or 1
        default_lanes = max(1, cpu_count() // self._threads_per_lane) if self.device == "cpu" else 1
        self.lanes = placement.lanes or default_lanes
        if self.device == "cpu":
            _keep_freed_memory()
        else:
            # By default cuDNN rounds float32 convolutions to TF32, 10 bits of mantissa.
            torch.backends.cudnn.allow_tf32 = False
        self._device = torch.device(self.device)
        self._dtype: torch.dtype = getattr(torch, self.dtype)
        self._network = network.to(self._device, self._dtype)
        self._scale = networks.channels(rescaling.scale).to(self._device)
        self._offset = networks.channels(rescaling.offset).to(self._device)

    @property
    def memory_bytes(self) -> int:
        """Memory that torch has allocated on the GPU, or that the weights take on a CPU."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return sum(tensor.nbytes for tensor in self._network.state_dict().values())

    def enter_lane(self) -> None:
        """Limits the calling thread's forwards to the threads of a lane."""
        torch.set_num_threads(self._threads_per_lane)

    def release_memory(self) -> None:
        """Gives back what the largest batch that was measured has left."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        trim_heap()

    @torch.inference_mode()
    def embed_pixels(self, pixels: NDArray[np.uint8]) -> Embeddings:
        with _memory_errors():
            # (batch, height, width, 3) seen as (batch, 3, height, width) is channels-last, without a copy
            pixel_values = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).to(torch.float32)
            pixel_values = pixel_values.mul_(self._scale).add_(self._offset).to(self._dtype)
            return _to_numpy(networks.embed_pixel_values(self._network, pixel_values))

    @torch.inference_mode()
    def embed_tokens(self, input_ids: TokenArray, attention_mask: TokenArray) -> Embeddings:
        with _memory_errors():
            ids, mask = (torch.from_numpy(array).to(self._device) for array in (input_ids, attention_mask))
            return _to_numpy(networks.embed_tokens(self._network, ids, mask))


def _keep_freed_memory() -> None:
    """Makes glibc keep what torch frees, for this process.

    By default it returns large blocks to the kernel, which then zeroes them page by page for the next
    forward: batches get slower than single images, and single ones lose a quarter. See `man mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc alone has it
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1)):
            mallopt(option, value)


def _to_numpy(embeddings: torch.Tensor) -> Embeddings:
    return embeddings.to(torch.float32).cpu().numpy()


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfDeviceMemory(str(error)) from error
    except RuntimeError as error:
        if any(text in str(error) for text in _CPU_OUT_OF_MEMORY):
            raise OutOfDeviceMemory(str(error)) from error
        raise
