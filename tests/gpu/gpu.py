"""Measures on the GPU with its own clock; the simulated GPU runs everything once and measures nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.profiler import ProfilerActivity

Run: TypeAlias = Callable[[], Any]

_WARMUP_RUNS = 3


class Gpu:
    """The first GPU of the machine."""

    device = torch.device("cuda:0")
    activities: tuple[ProfilerActivity, ...] = (ProfilerActivity.CPU, ProfilerActivity.CUDA)

    def synchronize(self) -> None:
        """Waits until the GPU has finished all its work."""
        torch.cuda.synchronize()

    def used_bytes(self) -> int:
        """Returns the GPU memory in use by all processes."""
        free, total = torch.cuda.mem_get_info()
        return total - free

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a copy in pinned memory, which the GPU can read directly."""
        return tensor.pin_memory()

    def milliseconds(self, run: Run, repeats: int = 15) -> float:
        """Returns the median time of a run on the GPU, in milliseconds."""
        for _ in range(_WARMUP_RUNS):
            run()
        self.synchronize()
        return statistics.median(self._once(run) for _ in range(repeats))

    def host_milliseconds(self, run: Run, seconds: float = 0.6, at_least: int = 5) -> float:
        """Returns the median time of a call on the host, in milliseconds."""
        run()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < at_least or time.perf_counter() < end:
            begin = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(times)

    def graphed(self, run: Run) -> Run:
        """Captures a run as a CUDA graph; returns its replay."""
        stream = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())  # it may still write what the run reads
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP_RUNS):
                run()
            with torch.cuda.graph(graph, stream=stream):
                output = run()
        self.synchronize()

        def replay() -> Any:
            graph.replay()
            return output

        return replay

    def wait_microseconds(self, run: Run, *, is_blocking: bool) -> float:
        """Returns how long the host waits for a run, asleep (blocking) or spinning, in microseconds."""

        def wait() -> None:
            event = torch.cuda.Event(blocking=is_blocking)
            run()
            event.record()
            event.synchronize()

        return 1e3 * self.host_milliseconds(wait)

    def _once(self, run: Run) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last))


class PretendedGpu(Gpu):
    """Runs everything once, on the CPU."""

    device = torch.device("cpu")
    activities = (ProfilerActivity.CPU,)

    def synchronize(self) -> None:
        """Returns at once."""

    def used_bytes(self) -> int:
        """Returns 0."""
        return 0

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a copy."""
        return tensor.clone()

    def milliseconds(self, run: Run, repeats: int = 15) -> float:
        """Runs it."""
        run()
        return float("nan")

    def host_milliseconds(self, run: Run, seconds: float = 0.6, at_least: int = 5) -> float:
        """Runs it."""
        run()
        return float("nan")

    def graphed(self, run: Run) -> Run:
        """Returns the run unchanged."""
        return run

    def wait_microseconds(self, run: Run, *, is_blocking: bool) -> float:
        """Runs it."""
        run()
        return float("nan")


def gpu_of(is_pretended: bool) -> Gpu:
    """Returns the GPU of a check."""
    return PretendedGpu() if is_pretended else Gpu()
