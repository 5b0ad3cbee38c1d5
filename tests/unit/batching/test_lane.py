"""A lane measures what its batches cost, and stops when the device is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.errors import ModelStalled
from alignserve_server.model.encoder import DeviceLost, Embeddings
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.metrics import Metrics
from structlog.testing import capture_logs
from structlog.typing import EventDict

from tests.unit.fakes import FakeClock, WatchedEncoder, submit

_FAULT = "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA` ..."


class Gpu(WatchedEncoder):
    """A device with two lanes that take turns. A batch takes 5 s in the lane, 2 of them on the device."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.has_parallel_lanes = False
        self.is_lost = False
        self._clock = clock

    def encode_images(self, batch: Sequence[Any]) -> Embeddings:
        return self._run(super().encode_images, batch)

    def encode_texts(self, batch: Sequence[Any]) -> Embeddings:
        return self._run(super().encode_texts, batch)

    def device_seconds(self) -> float | None:
        return 2.0

    def _run(self, forward: Callable[[Sequence[Any]], Embeddings], batch: Sequence[Any]) -> Embeddings:
        try:
            embeddings = forward(batch)
        finally:
            self._clock.advance(5.0)
        if self.is_lost:
            raise DeviceLost(_FAULT)
        return embeddings


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gpu(clock: FakeClock) -> Gpu:
    return Gpu(clock)


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
async def batcher(
    gpu: Gpu, clock: FakeClock, observer: MetricsObserver, logs: list[EventDict]
) -> AsyncIterator[Batcher]:
    scheduler = Scheduler({modality: BatchPolicy(32) for modality in ("image", "text")})
    batcher = Batcher(gpu, scheduler, observer, lanes=2, clock=clock)
    batcher.start()
    yield batcher
    gpu.resume()
    assert await batcher.stop(30.0)


def _images(call: int) -> list[bytes]:
    return [b"%d of call %d" % (number, call) for number in range(32)]


async def test_metrics_count_the_time_of_the_device(batcher, gpu, metrics: Metrics) -> None:
    """A caller sees how long its batch took; the metrics, how long the device was busy."""
    result = await submit(batcher, gpu, b"a")

    value = metrics.registry.get_sample_value
    assert result.compute_seconds == 5.0
    assert value("alignserve_device_busy_seconds_total") == 2.0
    assert value("alignserve_batch_compute_seconds_sum", {"modality": "image"}) == 2.0
    assert value("alignserve_lanes") == 1


async def test_a_failed_forward_costs_its_duration(batcher, gpu, metrics: Metrics) -> None:
    """Its device time is unknown. Here it is 5 s, and each of the two halves takes 2 s."""
    gpu.max_batch_size = 1

    await submit(batcher, gpu, b"a", b"b")

    assert metrics.registry.get_sample_value("alignserve_device_busy_seconds_total") == 5.0 + 2.0 + 2.0


async def test_a_lost_device_is_not_tried_again(batcher, gpu, logs) -> None:
    """Running and waiting callers get an error to retry on, without halved batches; one line is logged."""
    gpu.hold()
    calls = []
    for number in range(3):
        calls.append(submit(batcher, gpu, *_images(number)))
        if number < 2:
            await gpu.begun()
    gpu.is_lost = True

    gpu.resume()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    await batcher.stop(30.0)

    assert {type(outcome) for outcome in outcomes} == {ModelStalled}
    assert gpu.batch_sizes == [32, 32]  # one on each lane
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("device_lost", "CUDA error: an illegal memory access was encountered")
    ]


async def test_nothing_is_queued_for_a_lost_device(batcher, gpu) -> None:
    """No lane would ever run it."""
    batcher.lose_device(DeviceLost(_FAULT))

    with pytest.raises(ModelStalled):
        await submit(batcher, gpu, b"a")
