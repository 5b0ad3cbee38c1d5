"""Runs `CudaRuntime` on a CPU, with simulated CUDA graphs that behave like real ones.

A capture records operators and their tensors, and a replay runs the same operators on the same memory. A
replay misses what a real graph misses: a new tensor, or a number that Python has read. Streams and events do
nothing, because nothing is asynchronous, and memory has no limit. Two threads on the graphs' stream at the
same time raise an error; on a GPU they would silently overwrite each other's inputs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from alignserve_server.model.runtimes import torch_cpu, torch_cuda
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU_UUID = "00000000-0000-0000-0000-000000000000"
_MEMORY_BYTES = 1 << 40  # more than any weights


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """Makes `device="cuda"` load onto the CPU, for the length of the block."""
    with ExitStack() as stack:
        for target, name, replacement in (
            (
                torch_cuda,
                "torch",
                _Torch(),
            ),  # `torch.device("cuda:0")` and pinned memory, in this module only
            (torch_cpu, "cuda_device", lambda index: f"cuda:{index or 0}"),
            (torch.Tensor, "pin_memory", torch.Tensor.clone),
        ):
            stack.enter_context(patch.object(target, name, replacement))
        yield


class SharedStreamError(AssertionError):
    """Two threads use a stream with graphs at the same time."""


class Stream:
    """Does nothing, except that only one thread at a time may use it once graphs are captured on it."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.has_graphs = False
        self._owner: int | None = None

    def wait_stream(self, other: Stream) -> None:
        """Returns at once, because the other stream has always finished."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Holds the stream for the calling thread. Raises SharedStreamError."""
        me, before = threading.get_ident(), self._owner
        if self.has_graphs and before not in (None, me):
            raise SharedStreamError("two threads use the stream of the graphs at the same time")
        self._owner = me
        try:
            yield
        finally:
            self._owner = before


class Event:
    """An event that has always happened."""

    def __init__(self, blocking: bool = False) -> None:
        """Accepts the same arguments as torch."""

    def record(self, stream: Stream | None = None) -> None:
        """Does nothing."""

    def synchronize(self) -> None:
        """Returns at once."""


@dataclass(frozen=True)
class _Operation:
    """A captured operator, and the tensors that a replay must fill."""

    run: Any  # an OpOverload, which torch does not type
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    outputs: list[torch.Tensor]

    def repeat(self) -> None:
        """Runs the operator again, into the same memory."""
        made = tree_leaves(self.run(*self.arguments, **self.options))
        for output, again in zip(self.outputs, made, strict=True):
            # a view, or a tensor changed in place, already has the result
            if isinstance(output, torch.Tensor) and output.data_ptr() != again.data_ptr():
                output.copy_(again)


@dataclass
class Graph:
    """The operators of a capture, in order."""

    operations: list[_Operation] = field(default_factory=list)
    stream: Stream = field(default_factory=Stream)

    def replay(self) -> None:
        """Runs the operators on the memory of the capture. Raises SharedStreamError."""
        with self.stream.entered():
            for operation in self.operations:
                operation.repeat()


class _Capture(TorchDispatchMode):  # torch has no type here
    """Records every operator; refuses those that wait for the device, as a real capture does."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ == "_local_scalar_dense":
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self._graph.operations.append(_Operation(func, args, kwargs or {}, tree_leaves(out)))
        return out


@contextmanager
def _capturing(graph: Graph, pool: object, stream: Stream) -> Iterator[None]:
    graph.stream, stream.has_graphs = stream, True
    with _Capture(graph):
        yield


CUDA = SimpleNamespace(  # the part of `torch.cuda` that the runtime uses
    CUDAGraph=Graph,
    Event=Event,
    Stream=Stream,
    empty_cache=lambda: None,
    get_device_properties=lambda device: SimpleNamespace(uuid=GPU_UUID),
    graph=_capturing,
    graph_pool_handle=lambda: (0, 1),
    memory_reserved=lambda device: _MEMORY_BYTES,
    set_device=lambda device: None,
    stream=lambda stream: stream.entered(),
)


class _Torch:
    """torch as the runtime's module sees it."""

    cuda = CUDA

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def device(name: str) -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def empty(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return torch.empty(*shape, **options)
