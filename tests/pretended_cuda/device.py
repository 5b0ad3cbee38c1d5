"""The simulated device: streams that run late, events with times, and faults."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Literal

import torch
from torch.utils._python_dispatch import _disable_current_modes

from tests.pretended_cuda import graphs

GPU_UUID = "00000000-0000-0000-0000-000000000000"
SECONDS_PER_OPERATION = 1e-5
_MEMORY_BYTES = 1 << 40  # reported; more than any weights

Step = Literal["allocate", "pin", "operation", "capture", "capture_end", "replay", "synchronize"]

# What spoils a capture of another thread, unless that was begun with the mode `thread_local`.
_UNSAFE_IN_CAPTURES = {"allocate", "pin", "synchronize"}


class SharedStreamError(AssertionError):
    """Two threads use a stream with graphs at the same time."""


@dataclass
class Fault:
    """An error that the device raises on the way.

    Attributes:
        step: Where: in an operator outside of a capture, in one inside (once a capture), and so on.
        error: The exception to raise.
        after: How many such steps succeed before.
        times: How many such steps fail; None for all that follow.
        is_sticky: Whether every later step of any kind fails in the same way.
    """

    step: Step
    error: Exception
    after: int = 0
    times: int | None = 1
    is_sticky: bool = False

    def meet(self, step: Step) -> bool:
        """Returns whether this step fails."""
        if step != self.step or self.times == 0:
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class _Marker:
    """A recorded event's place in its stream; `time` is set once the stream has passed it."""

    stream: Stream
    time: float | None = None


@dataclass
class _Work:
    """Operators, or a wait for a marker, or a marker to pass."""

    submitted: float
    operations: list[graphs.Operation] = field(default_factory=list)
    waits_for: _Marker | None = None
    passes: _Marker | None = None


class Device:
    """One GPU.

    Attributes:
        faults: What will go wrong.
        capture_limit_bytes: What the tensors of one capture may take; None for any amount.
        lack: Makes the error of a capture that takes more.
        is_broken: Whether a failed capture has left the allocator in the state of a capture.
        workspaces: What cuBLAS uses on each stream, until torch frees it.
        strangers: Threads that have used a stream without `set_device`: on a machine with several GPUs they
            take memory of the first.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.capture_limit_bytes: int | None = None
        self.lack: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory.")
        self.is_broken = False
        self.pool_streams: dict[object, Stream] = {}  # where the graphs of a pool are replayed
        self.pool_graphs: dict[object, int] = {}  # how many a pool has; none if all captures failed
        self.global_capture: tuple[graphs.Graph, int] | None = None  # that any thread can spoil, and its own
        self.lock = threading.RLock()
        self.workspaces: dict[Stream, object] = {}
        self.strangers: set[int] = set()
        self._sticky: Exception | None = None
        self._time = 0.0  # of the host
        self._pools = 0
        self._current = threading.local()
        self.default_stream = Stream(self)
        self.cuda = SimpleNamespace(  # the part of `torch.cuda` that the runtime uses
            CUDAGraph=lambda: graphs.Graph(self),
            Event=lambda enable_timing=False, blocking=False: Event(self, enable_timing=enable_timing),
            Stream=lambda device=None, priority=0: Stream(self, priority),
            current_stream=lambda device=None: self.current_stream,
            empty_cache=lambda: None,
            get_device_properties=lambda device: SimpleNamespace(uuid=GPU_UUID),
            graph_pool_handle=self._new_pool,
            memory_reserved=lambda device: _MEMORY_BYTES,
            set_device=self._chosen,
            stream=self._entered,
            synchronize=lambda device=None: None,
        )

    @property
    def current_stream(self) -> Stream:
        """The calling thread's stream."""
        stream: Stream = getattr(self._current, "stream", self.default_stream)
        return stream

    def reset(self) -> None:
        """Replaces the device: nothing fails any more."""
        self.faults.clear()
        self.capture_limit_bytes, self.is_broken, self._sticky = None, False, None

    def meet(self, step: Step) -> None:
        """Raises the error of a fault at this step, if there is one."""
        with self.lock:
            if self.global_capture is not None and step in _UNSAFE_IN_CAPTURES:
                graph, thread = self.global_capture
                if thread != threading.get_ident():
                    graph.invalidate()
            if self._sticky is not None:
                raise self._sticky
            for fault in self.faults:
                if fault.meet(step):
                    self._sticky = fault.error if fault.is_sticky else None
                    raise fault.error

    def submit(self, stream: Stream, operations: list[graphs.Operation]) -> None:
        """Adds operators to the end of a stream; the default stream runs them at once."""
        with self.lock:
            stream.work.append(_Work(self._time, operations))
        if stream is self.default_stream:
            self.reach(self.mark(stream))

    def mark(self, stream: Stream) -> _Marker:
        """Adds a marker to the end of a stream."""
        with self.lock:
            marker = _Marker(stream)
            stream.work.append(_Work(self._time, passes=marker))
            return marker

    def wait(self, stream: Stream, marker: _Marker) -> None:
        """Makes a stream wait for a marker of another."""
        with self.lock:
            stream.work.append(_Work(self._time, waits_for=marker))

    def reach(self, marker: _Marker) -> None:
        """Runs streams until a marker has been passed, as a waiting host sees it."""
        self.meet("synchronize")
        with self.lock, _disable_current_modes(), torch.inference_mode():
            self._time = max(self._time, self._run_to(marker))

    def _run_to(self, marker: _Marker) -> float:
        while marker.time is None:
            self._run_next(marker.stream)
        return marker.time

    def _run_next(self, stream: Stream) -> None:
        work = stream.work.popleft()
        stream.time = max(stream.time, work.submitted)
        if work.waits_for is not None:
            stream.time = max(stream.time, self._run_to(work.waits_for))
        for operation in work.operations:
            operation.run()
        stream.time += SECONDS_PER_OPERATION * len(work.operations)
        if work.passes is not None:
            work.passes.time = stream.time

    def clear_workspaces(self) -> None:
        """Frees the workspaces of all streams; those of a pool stay valid for its graphs."""
        self.workspaces.clear()

    def _chosen(self, device: torch.device) -> None:
        self._current.is_chosen = True

    def _new_pool(self) -> tuple[int, int]:
        self._pools += 1
        return (0, self._pools)

    @contextmanager
    def _entered(self, stream: Stream) -> Iterator[None]:
        """Makes the stream the calling thread's; operators go there. Raises SharedStreamError."""
        outer = self.current_stream
        if not hasattr(self._current, "is_chosen"):
            self.strangers.add(threading.get_ident())
        with stream.held():
            self._current.stream = stream
            try:
                with graphs.Issued(self):
                    yield
            finally:
                self._current.stream = outer


class Stream:
    """Work in order. Once graphs are captured on it, only one thread at a time may use it."""

    def __init__(self, device: Device, priority: int = 0) -> None:
        self.priority = priority
        self.has_graphs = False
        self.capturing: graphs.Graph | None = None
        self.work: deque[_Work] = deque()
        self.time = 0.0
        self._device = device
        self._owner: int | None = None

    def wait_stream(self, other: Stream) -> None:
        """Makes later work wait for the other stream's work so far."""
        self._device.wait(self, self._device.mark(other))

    def wait_event(self, event: Event) -> None:
        """Makes later work wait for the event."""
        if event.marker is not None:
            self._device.wait(self, event.marker)

    def synchronize(self) -> None:
        """Waits for the work so far."""
        self._device.reach(self._device.mark(self))

    @contextmanager
    def held(self) -> Iterator[None]:
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
    """A place in a stream."""

    def __init__(self, device: Device, *, enable_timing: bool = False) -> None:
        self.marker: _Marker | None = None
        self._device = device
        self._has_timing = enable_timing

    def record(self, stream: Stream | None = None) -> None:
        """Puts the event at the end of a stream, by default the current one."""
        self.marker = self._device.mark(stream or self._device.current_stream)

    def synchronize(self) -> None:
        """Waits for the event."""
        if self.marker is not None:
            self._device.reach(self.marker)

    def elapsed_time(self, end: Event) -> float:
        """Returns milliseconds. Raises RuntimeError if one of the events has not happened or has no time."""
        if not (self._has_timing and end._has_timing):
            raise ValueError("both events must be created with argument 'enable_timing=True'")
        first, last = (event.marker.time if event.marker else None for event in (self, end))
        if first is None or last is None:
            raise RuntimeError("CUDA error: device not ready")
        return 1e3 * (last - first)
