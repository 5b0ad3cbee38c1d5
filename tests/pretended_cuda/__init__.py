"""Simulated CUDA: runs `CudaRuntime` on a CPU, with what makes CUDA hard to program.

Operators on a stream run late: when the host synchronizes, and then only those that it or a wait between
streams requires. So code that reads before it has synchronized, omits a wait, or overwrites pinned memory
too early gets wrong numbers here, every time. A capture records operators and a replay runs them again on the
same memory. Events have times on a simulated clock, and memory, captures and the device fail on request.
Outside of a stream's context, and on the default stream, operators run at once. Matrix products use
workspaces, which torch may free before the graphs that use them.

Not simulated: the rounding of GPU kernels, cuBLAS and cuDNN, the reuse of freed memory, and what CUDA refuses
to capture, except reads of values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from alignserve_server.model.runtimes import cuda_devices, cuda_graphs, cuda_lane, torch_cuda

from tests.pretended_cuda.device import Device, Event, Fault, SharedStreamError, Stream
from tests.pretended_cuda.graphs import FreedWorkspaceError, Graph, SharedPoolError

__all__ = [
    "Device",
    "Event",
    "Fault",
    "FreedWorkspaceError",
    "Graph",
    "SharedPoolError",
    "SharedStreamError",
    "Stream",
    "pretended_cuda",
]

_MODULES = (torch_cuda, cuda_graphs, cuda_lane)  # use `torch.cuda`, and tensors on the device


@contextmanager
def pretended_cuda() -> Iterator[Device]:
    """Makes `device="cuda"` load onto the CPU, for the length of the block; returns the device."""
    device = Device()
    with ExitStack() as stack:
        for module in _MODULES:
            stack.enter_context(patch.object(module, "torch", _Torch(device)))
        stack.enter_context(patch.object(cuda_devices, "cuda_device", lambda index, **_: f"cuda:{index}"))
        yield device


class _Torch:
    """torch as the runtime's modules see it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.cuda = device.cuda
        self._C = SimpleNamespace(_cuda_clearCublasWorkspaces=device.clear_workspaces)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def device(name: str) -> torch.device:
        return torch.device("cpu")

    def empty(self, *shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        self._device.meet("pin" if pin_memory else "allocate")
        return torch.empty(*shape, **options)
