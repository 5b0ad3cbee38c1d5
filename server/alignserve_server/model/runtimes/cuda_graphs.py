"""A CUDA stream on which forwards run one after the other, and whose graphs share memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from alignserve_server.model.encoder import CaptureFailed
from alignserve_server.model.runtimes.device_errors import device_errors
from alignserve_server.model.runtimes.static_forwards import Forward


class ComputeStream:
    """Runs the forwards of one modality in order.

    Its graphs share one memory pool, so they must not run at the same time; graphs of another stream may.

    Attributes:
        stream: Where forwards run, and where graphs are captured: kernels get its priority.
        turn: Held from a batch's input to its output, because graphs have fixed memory.
    """

    def __init__(self, device: torch.device, *, priority: int = 0) -> None:
        """Creates the stream; a lower priority number runs first."""
        self.stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]  # in torch
        self.turn = threading.Lock()
        self._pool = torch.cuda.graph_pool_handle()
        self._has_graphs = False

    def captured(self, forward: Forward) -> Forward:
        """Captures a forward as a CUDA graph; returns its replay, which overwrites its output each time.

        Raises:
            CaptureFailed: The capture could not be ended, so this process cannot use the device any more.
            Exception: Whatever the forward raises, such as for memory; another capture may succeed.
        """
        try:
            replay = self._captured(forward, self._pool)
        except Exception:
            if not self._has_graphs:  # torch refuses a pool that only a failed capture has used
                self._pool = torch.cuda.graph_pool_handle()
            raise
        self._has_graphs = True
        return replay

    def tried(self, forward: Forward) -> Forward:
        """Captures a forward whose graph is not kept, in memory of its own. Raises as `captured` does."""
        return self._captured(forward, torch.cuda.graph_pool_handle())

    def _captured(self, forward: Forward, pool: Any) -> Forward:
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())  # it may still write what the forward reads
        with torch.cuda.stream(self.stream):
            forward()  # libraries create their handles and choose algorithms, which no capture may contain
            self.stream.synchronize()
            with _own_workspaces(), _without_garbage_collection():
                torch.cuda.empty_cache()  # the graphs' pool cannot use what the warm-up has left
                output = _recorded(graph, pool, forward)

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


def _recorded(graph: torch.cuda.CUDAGraph, pool: Any, forward: Forward) -> torch.Tensor:
    """Runs a forward into a graph and returns its output. Torch has no public type for pools."""
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # other threads may use the device
    try:
        output = forward()
    except BaseException as error:
        try:
            with device_errors():
                graph.capture_end()
        except RuntimeError as lasting:
            raise CaptureFailed(f"{error}; then {lasting}") from error
        raise
    graph.capture_end()
    return output


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Lets cuBLAS take the workspaces of a capture from the graphs' pool, which lives as long as they do.

    Otherwise a graph uses those that torch keeps for its stream. Torch frees them with the first graph of the
    stream that is destroyed (pytorch/pytorch#193402), and some versions with the thread that captured it.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Captures may not free CUDA objects that are in reference cycles, such as those of an earlier model."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
