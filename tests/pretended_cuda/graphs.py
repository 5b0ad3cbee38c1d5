"""Operators that are issued to a stream of the simulated device, or recorded into a graph."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from tests.pretended_cuda.device import Device, Stream


_MATRIX_PRODUCTS = {"addmm", "baddbmm", "bmm", "linear", "matmul", "mm"}  # of cuBLAS
_READS = {"_local_scalar_dense", "equal", "is_nonzero", "item", "nonzero"}  # the host needs their results


class SharedPoolError(AssertionError):
    """Graphs that share memory are replayed on two streams that have not been waited for."""


class FreedWorkspaceError(AssertionError):
    """A graph's matrix product writes to a workspace that torch has freed."""


@dataclass(frozen=True)
class Operation:
    """An operator to run, and the tensors that it must fill."""

    function: Any  # an OpOverload, which torch does not type
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    outputs: Sequence[torch.Tensor]  # none for an operator that changes its arguments

    def run(self) -> None:
        """Runs the operator on the memory of its arguments, as it is now."""
        made = tree_leaves(self.function(*self.arguments, **self.options))
        if self.outputs:
            made = [leaf for leaf in made if isinstance(leaf, torch.Tensor)]
            for output, again in zip(self.outputs, made, strict=True):
                output.copy_(again)


class Issued(TorchDispatchMode):
    """Sends the operators of a thread to its current stream, or into the graph that captures there."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        stream = self._device.current_stream
        if func.overloadpacket.__name__ in _READS:
            _finish(stream)
            return func(*args, **options)
        changed = _changed_arguments(func, args, options)
        made = None if changed else _made(func, args, options)
        outputs = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        if not changed and (_is_allocation(func) or _are_views(outputs, (args, options))):
            return made
        for output in outputs:
            _remove_values(output)
        # Aliases: a module replaces the data of its parameters when it is moved.
        operation = Operation(func, tree_map(_alias, args), tree_map(_alias, options), outputs)
        if func.overloadpacket.__name__ in _MATRIX_PRODUCTS:
            self._use_workspace(stream)
        if stream.capturing is None:
            self._device.meet("operation")
            self._device.submit(stream, [operation])
        else:
            stream.capturing.record(operation)
        if not changed or not func._schema.returns:
            return made
        return changed[0] if len(changed) == 1 else tuple(changed)

    def _use_workspace(self, stream: Stream) -> None:
        """Uses the stream's workspace, or a new one, which in a capture is a part of the graphs' pool."""
        is_new = stream not in self._device.workspaces
        workspace = self._device.workspaces.setdefault(stream, object())
        if stream.capturing is not None:
            (stream.capturing.own if is_new else stream.capturing.borrow)(workspace)


class Graph:
    """The operators of a capture, in order."""

    def __init__(self, device: Device) -> None:
        self.operations: list[Operation] = []
        self._device = device
        self._pool: object = None
        self._stream: Stream | None = None  # of a capture that has ended
        self._own: object = None  # workspace
        self._borrowed: list[object] = []  # workspaces
        self._bytes = 0
        self._is_complete = self._is_valid = True

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        """Records what follows on the current stream. Raises RuntimeError, after a capture that broke."""
        stream = self._device.current_stream
        if stream is self._device.default_stream:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        if self._device.is_broken:
            raise RuntimeError("the allocator is still capturing")
        if self._device.pool_graphs.get(pool) == 0:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self._pool = object() if pool is None else pool  # else its own
        stream.capturing, stream.has_graphs = self, True
        if capture_error_mode == "global":
            self._device.global_capture = self, threading.get_ident()

    def capture_end(self) -> None:
        """Ends the recording. Raises RuntimeError if something that is not permitted was captured."""
        stream = self._device.current_stream
        stream.capturing = self._device.global_capture = None
        try:
            self._device.meet("capture_end")
        except RuntimeError:
            self._device.is_broken = True
            raise
        if not self._is_valid:
            self._device.is_broken = True
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self._stream = stream
        graphs = self._device.pool_graphs
        graphs[self._pool] = graphs.get(self._pool, 0) + self._is_complete

    def record(self, operation: Operation) -> None:
        """Adds an operator. Raises the device's error if it is due, or the graph becomes too large."""
        self._is_complete = False
        self._device.meet("capture")
        self.operations.append(operation)
        self._bytes += sum(output.nbytes for output in operation.outputs)
        limit = self._device.capture_limit_bytes
        if limit is not None and self._bytes > limit:
            raise self._device.lack()
        self._is_complete = True

    def borrow(self, workspace: object) -> None:
        """Notes a workspace that existed before the capture; one of its own lasts with the pool."""
        if workspace is not self._own:
            self._borrowed.append(workspace)

    def own(self, workspace: object) -> None:
        """Notes the workspace that was made in the capture."""
        self._own = workspace

    def __del__(self) -> None:
        """Frees the workspace of the stream, as torch does, although other graphs may use it."""
        if self._stream is not None:
            self._device.workspaces.pop(self._stream, None)

    def invalidate(self) -> None:
        """Makes the capture fail when it ends."""
        self._is_valid = False

    def replay(self) -> None:
        """Issues the operators again, on the same memory. Raises SharedPoolError and SharedStreamError."""
        stream = self._device.current_stream
        self._device.meet("replay")
        if not all(one in self._device.workspaces.values() for one in self._borrowed):
            raise FreedWorkspaceError("a graph uses a workspace that was freed")
        with stream.held():
            before = self._device.pool_streams.get(self._pool, stream)
            if before is not stream and before.work:
                raise SharedPoolError("graphs of one memory pool are replayed on two streams at once")
            self._device.pool_streams[self._pool] = stream
            self._device.submit(stream, self.operations)


def _finish(stream: Stream) -> None:
    """Waits for a stream, of which the host reads a value."""
    if stream.capturing is not None:
        stream.capturing.invalidate()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
    stream.synchronize()


def _made(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Runs an operator for the shapes of its results, or for a view; the values come later."""
    if any(one.alias_info is not None for one in func._schema.returns):
        return func(*args, **options)
    # Its integers may be indexes that are not there yet.
    return func(*tree_map(_zeros, args), **tree_map(_zeros, options))


def _alias(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf


def _zeros(leaf: Any) -> Any:
    is_integer = isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.int32, torch.int64)
    return torch.zeros_like(leaf) if is_integer else leaf


def _is_allocation(func: Any) -> bool:
    return "empty" in func.overloadpacket.__name__


def _are_views(outputs: list[torch.Tensor], given: Any) -> bool:
    """Returns whether results share the memory of arguments; some operators return a view or a copy."""
    storages = {
        one.untyped_storage().data_ptr() for one in tree_leaves(given) if isinstance(one, torch.Tensor)
    }
    return any(output.untyped_storage().data_ptr() in storages for output in outputs)


def _changed_arguments(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
    """Returns the arguments that an operator writes to."""
    given = {parameter.name: value for parameter, value in zip(func._schema.arguments, args, strict=False)}
    given.update(options)
    return [
        given[parameter.name]
        for parameter in func._schema.arguments
        if parameter.alias_info is not None and parameter.alias_info.is_write and parameter.name in given
    ]


def _remove_values(tensor: torch.Tensor) -> None:
    """Replaces numbers by NaN, so that code that reads them too early fails."""
    if tensor.is_floating_point():
        tensor.fill_(torch.nan)
