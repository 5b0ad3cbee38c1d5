"""Batches in buckets give what they give without; on a CPU, where nothing is really captured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes.runtime import Rescaling
from alignserve_server.model.runtimes.static_forwards import (
    Extent,
    Forward,
    StaticForwards,
    bucket_for,
    buckets,
)
from alignserve_server.model.runtimes.towers import Towers
from structlog.testing import capture_logs

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
EXTENT = Extent(batch_size=6, image_size=(64, 64), text_tokens=20)
RANDOM = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def towers() -> Towers:
    """The embedded checkpoint's."""
    network = networks.optimized(networks.load_network(resolve_checkpoint().folder))
    rescaling = Rescaling(np.full(3, 1 / 255, np.float32), np.zeros(3, np.float32))
    return Towers(network, rescaling, CPU, torch.float32)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


class Device:
    """Captures forwards, as long as they fit and it can; says what has run."""

    def __init__(self, *, max_batch_size: int = 99, is_able: bool = True) -> None:
        self.ran: list[tuple[int, ...]] = []
        self._max_batch_size = max_batch_size
        self._is_able = is_able

    def __call__(self, forward: Forward) -> Forward:
        shape = forward.args[0].shape
        if not self._is_able:
            raise RuntimeError("operation not permitted when stream is capturing")
        if len(shape) == 2 and shape[0] > self._max_batch_size:  # images have fitted by then
            raise torch.OutOfMemoryError("CUDA out of memory")

        def replay() -> torch.Tensor:
            self.ran.append(tuple(shape[:2]) if len(shape) == 2 else (shape[0],))
            return forward()

        return replay


def images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=RANDOM)


def texts(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(5, 7000, mask.shape, generator=RANDOM) * mask, mask


def captured(towers: Towers, device: Device) -> StaticForwards:
    forwards = StaticForwards(towers, EXTENT, CPU)
    forwards.capture(device)
    return forwards


@pytest.mark.parametrize(
    ("limit", "smallest", "expected"),
    [
        (1, 1, [1]),
        (2, 1, [1, 2]),
        (32, 1, [1, 2, 4, 8, 16, 32]),
        (24, 1, [1, 2, 4, 8, 16, 24]),
        (64, 8, [8, 16, 32, 64]),
        (5, 8, [5]),
    ],
)
def test_buckets_double_up_to_the_limit(limit, smallest, expected):
    """They are the sizes that are tried for the best batch."""
    assert buckets(limit, smallest) == expected


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, None)])
def test_a_batch_goes_to_the_smallest_bucket_that_holds_it(size, expected):
    """Exactly full, one over, and more than there is."""
    assert bucket_for(size, [4, 1, 2]) == expected


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)])
def test_images_come_out_as_without_a_bucket(towers, count, bucket):
    """The bucket's other rows are cut off, whatever an earlier batch has left there."""
    device = Device()
    forwards = captured(towers, device)
    forwards.embed_pixels(images(6))
    pixels = images(count)

    actual = forwards.embed_pixels(pixels)

    torch.testing.assert_close(actual, towers.embed_pixels(pixels), rtol=1e-4, atol=1e-5)
    assert device.ran[-1] == (bucket,)


@pytest.mark.parametrize(
    ("lengths", "bucket"),
    [((3,), (1, 8)), ((8, 2), (2, 8)), ((9, 1, 4), (4, 16)), ((20,) * 6, (6, 20)), ((17, 2), (2, 20))],
)
def test_texts_come_out_as_without_a_bucket(towers, lengths, bucket):
    """Padding of both kinds changes nothing, nor do longer texts of an earlier batch."""
    device = Device()
    forwards = captured(towers, device)
    forwards.embed_tokens(*texts(20, 20, 20, 20, 20, 20))
    tokens = texts(*lengths)

    actual = forwards.embed_tokens(*tokens)

    torch.testing.assert_close(actual, towers.embed_tokens(*tokens), rtol=1e-4, atol=1e-5)
    assert device.ran[-1] == bucket


def test_the_first_batch_of_all_is_finite_in_every_row(towers):
    """Rows that no text has ever filled do not make NaN, which some kernels would spread."""
    rows: list[torch.Tensor] = []

    def keep_whole(forward: Forward) -> Forward:
        return lambda: rows.append(forward()) or rows[-1]

    forwards = StaticForwards(towers, EXTENT, CPU)
    forwards.capture(keep_whole)

    forwards.embed_tokens(*texts(3, 2, 2))

    assert len(rows[-1]) == 4
    assert rows[-1].isfinite().all()


def test_a_batch_that_no_bucket_holds_is_left_to_the_caller(towers):
    """Larger batches and longer texts than were foreseen are not cut."""
    forwards = captured(towers, Device())

    assert forwards.embed_pixels(images(7)) is None
    assert forwards.embed_tokens(*texts(3, 3, 3, 3, 3, 3, 3)) is None
    assert forwards.embed_tokens(*texts(21)) is None


def test_buckets_that_do_not_fit_are_left_out(towers):
    """Out of memory at a capture costs that size, for both modalities, and the log says so."""
    with capture_logs() as events:
        forwards = captured(towers, Device(max_batch_size=2))

    assert forwards.batch_sizes == [1, 2]
    assert [(event["event"], event["batch_size"]) for event in events] == [
        ("cuda_graph_too_large", 6),
        ("cuda_graph_too_large", 4),
    ]
    assert forwards.embed_pixels(images(3)) is None


def test_what_cannot_be_captured_runs_without(towers):
    """The log says why, once, and every batch is left to the caller."""
    with capture_logs() as events:
        forwards = captured(towers, Device(is_able=False))

    assert [event["event"] for event in events] == ["cuda_graphs_disabled"]
    assert "not permitted" in events[0]["reason"]
    assert forwards.batch_sizes == []
    assert forwards.embed_pixels(images(1)) is None
