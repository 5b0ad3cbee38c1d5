"""Simulated CUDA behaves like CUDA where code goes wrong: order, memory and failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from tests.pretended_cuda import Device, Fault, SharedPoolError, SharedStreamError
from tests.pretended_cuda.device import SECONDS_PER_OPERATION

pytestmark = pytest.mark.model

ERROR = RuntimeError("CUDA error: out of memory")


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def cuda(device: Device) -> Any:
    """The device's `torch.cuda`."""
    return device.cuda


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_operators_run_when_the_host_waits(cuda):
    """Before, a new tensor has no numbers, and an old one its old numbers."""
    stream, source, target = cuda.Stream(), torch.ones(2), torch.zeros(2)
    with cuda.stream(stream):
        doubled = source * 2
        target.copy_(doubled)
    assert doubled.isnan().all()
    assert target.tolist() == [0, 0]

    stream.synchronize()

    assert target.tolist() == [2, 2]


def test_only_the_stream_that_is_waited_for_runs(cuda):
    """Work of another stream, for which no code waits, comes too late."""
    copies, compute, source, target = cuda.Stream(), cuda.Stream(), torch.ones(1), torch.zeros(1)
    with cuda.stream(copies):
        target.copy_(source)
    with cuda.stream(compute):
        result = target + 1

    compute.synchronize()

    assert result.tolist() == [1]


def test_a_stream_waits_for_another(cuda):
    """Then its work comes first."""
    copies, compute, source, target = cuda.Stream(), cuda.Stream(), torch.ones(1), torch.zeros(1)
    with cuda.stream(copies):
        target.copy_(source)
    with cuda.stream(compute):
        compute.wait_stream(copies)
        result = target + 1

    compute.synchronize()

    assert result.tolist() == [2]


def test_pinned_memory_is_read_late(cuda):
    """Code that overwrites it before the copy has happened loses the first numbers."""
    stream, pinned, target = cuda.Stream(), torch.ones(1), torch.zeros(1)
    with cuda.stream(stream):
        target.copy_(pinned, non_blocking=True)
    pinned.numpy()[:] = 5

    stream.synchronize()

    assert target.tolist() == [5]


def test_a_value_that_is_read_has_been_waited_for(cuda):
    """As on a GPU, `item` synchronizes."""
    with cuda.stream(cuda.Stream()):
        assert (torch.ones(1) * 3).item() == 3


def test_a_replay_reads_and_writes_the_memory_of_the_capture(cuda):
    """It does not see a new tensor; a capture itself runs nothing."""
    stream, source, graph = cuda.Stream(), torch.ones(3), cuda.CUDAGraph()
    with cuda.stream(stream):
        graph.capture_begin()
        doubled = source * 2
        graph.capture_end()
        stream.synchronize()
        assert doubled.isnan().all()
        source.fill_(5)
        graph.replay()

    stream.synchronize()

    assert doubled.tolist() == [10, 10, 10]


def test_reading_a_value_breaks_a_capture_for_good(cuda):
    """The number does not exist yet; afterwards the process cannot capture any more."""
    with cuda.stream(cuda.Stream()):
        graph = cuda.CUDAGraph()
        graph.capture_begin()
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            torch.ones(1).item()
        with pytest.raises(RuntimeError, match="previous error during capture"):
            graph.capture_end()
        with pytest.raises(RuntimeError, match="still capturing"):
            cuda.CUDAGraph().capture_begin()


def test_a_capture_that_lacks_memory_can_be_ended(device, cuda):
    """A smaller one may follow."""
    device.capture_limit_bytes = 100
    with cuda.stream(cuda.Stream()):
        graph = cuda.CUDAGraph()
        graph.capture_begin()
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(100) + 1
        graph.capture_end()
        smaller = cuda.CUDAGraph()
        smaller.capture_begin()
        torch.ones(10).add(1)
        smaller.capture_end()

    assert len(smaller.operations) >= 1


def test_two_threads_must_not_share_the_stream_of_graphs(cuda):
    """They would overwrite each other's inputs."""
    stream, graph = cuda.Stream(), cuda.CUDAGraph()
    with cuda.stream(stream):
        graph.capture_begin()
        graph.capture_end()

    with cuda.stream(stream), ThreadPoolExecutor(1) as lane, pytest.raises(SharedStreamError):
        lane.submit(cuda.stream(stream).__enter__).result()


def test_a_stream_without_graphs_is_shared(cuda):
    """Only graphs have memory that two threads could overwrite."""
    stream, entered = cuda.Stream(), threading.Event()

    def enter() -> None:
        with cuda.stream(stream):
            entered.set()

    with cuda.stream(stream), ThreadPoolExecutor(1) as thread:
        thread.submit(enter).result()

    assert entered.is_set()


def test_graphs_of_one_pool_must_not_run_on_two_streams(cuda):
    """They share memory, and could run at the same time, unless the host has waited for the first."""
    pool, graphs, first = cuda.graph_pool_handle(), [], cuda.Stream()
    for _ in range(2):
        with cuda.stream(cuda.Stream()):
            graph = cuda.CUDAGraph()
            graph.capture_begin(pool=pool)
            graph.capture_end()
            graphs.append(graph)
    with cuda.stream(first):
        graphs[0].replay()

    with cuda.stream(cuda.Stream()):
        with pytest.raises(SharedPoolError):
            graphs[1].replay()
        first.synchronize()
        graphs[1].replay()


def test_a_pool_that_only_failed_captures_have_used_is_refused(device, cuda):
    """As torch does, by an assertion."""
    device.faults.append(Fault("capture", ERROR))
    pool = cuda.graph_pool_handle()
    with cuda.stream(cuda.Stream()):
        graph = cuda.CUDAGraph()
        graph.capture_begin(pool=pool)
        with pytest.raises(RuntimeError, match="out of memory"):
            torch.ones(1) + 1
        graph.capture_end()

        with pytest.raises(RuntimeError, match="INTERNAL ASSERT"):
            cuda.CUDAGraph().capture_begin(pool=pool)


def test_events_have_the_time_of_their_stream(cuda):
    """An operator takes its time; a wait for another stream, the rest of that stream's."""
    first, second = cuda.Stream(), cuda.Stream()
    begin, middle, end = (cuda.Event(enable_timing=True) for _ in range(3))
    begin.record(first)
    with cuda.stream(first):
        torch.ones(1) * 1 * 2 * 3
    middle.record(first)
    second.wait_stream(first)
    with cuda.stream(second):
        torch.ones(1) * 4
    end.record(second)
    with pytest.raises(RuntimeError, match="not ready"):
        begin.elapsed_time(end)

    end.synchronize()

    per_operation = 1e3 * SECONDS_PER_OPERATION
    assert begin.elapsed_time(middle) == pytest.approx(begin.elapsed_time(end) * 4 / 6)
    assert middle.elapsed_time(begin) < 0 < per_operation < middle.elapsed_time(end)


def test_faults_come_when_they_are_due(device, cuda):
    """After some steps, as often as asked, and only at that step."""
    device.faults.append(Fault("operation", ERROR, after=1))
    with cuda.stream(cuda.Stream()):
        source = torch.from_numpy(np.ones(1, np.float32))
        source + 1
        with pytest.raises(RuntimeError, match="out of memory"):
            source + 1
        source + 1


def test_a_sticky_fault_stays(device, cuda):
    """Whatever is called then fails."""
    device.faults.append(Fault("operation", ERROR, is_sticky=True))
    stream = cuda.Stream()
    with cuda.stream(stream), pytest.raises(RuntimeError):
        torch.from_numpy(np.ones(1, np.float32)) + 1

    with pytest.raises(RuntimeError):
        stream.synchronize()
