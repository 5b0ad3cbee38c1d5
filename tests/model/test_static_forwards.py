"""Batches in buckets give the same results as without; on a CPU, without real captures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.model.encoder import CaptureFailed, DeviceLost
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes.runtime import PreparedShape, Rescaling
from alignserve_server.model.runtimes.static_forwards import (
    Forward,
    StaticImages,
    StaticTexts,
    image_batch_sizes,
    text_batch_sizes,
    text_lengths,
)
from alignserve_server.model.runtimes.towers import Towers
from structlog.testing import capture_logs

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
BATCH_SIZE, TOKENS = 6, 20
RANDOM = torch.Generator().manual_seed(0)
LACKING_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


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
    """Captures forwards up to a batch size, beyond which it raises, and records which have run."""

    def __init__(self, *, max_batch_size: int = 99, error: Exception = LACKING_MEMORY[0]) -> None:
        self.ran: list[tuple[int, ...]] = []
        self._max_batch_size = max_batch_size
        self._error = error

    def __call__(self, forward: Forward) -> Forward:
        shape = tuple(forward.args[0].shape)  # type: ignore[attr-defined]  # a partial
        if shape[0] > self._max_batch_size:
            raise self._error

        def replay() -> torch.Tensor:
            self.ran.append(shape[:2] if len(shape) == 2 else shape[:1])
            return forward()

        return replay


def images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=RANDOM)


def texts(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(5, 1000, mask.shape, generator=RANDOM) * mask, mask


def static_images(towers: Towers, device: Device) -> StaticImages:
    forwards = StaticImages(towers.embed_pixels, BATCH_SIZE, (64, 64), CPU)
    forwards.capture(device)
    return forwards


def static_texts(towers: Towers, device: Device) -> StaticTexts:
    forwards = StaticTexts(towers.embed_tokens, BATCH_SIZE, TOKENS, CPU)
    forwards.capture(device)
    return forwards


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [1]),
        (6, [1, 2, 3, 4, 5, 6]),
        (13, [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 13]),
        (40, [*range(1, 8), *range(8, 32, 2), 32, 36, 40]),
        (80, [*range(1, 8), *range(8, 32, 2), *range(32, 64, 4), 64, 72, 80]),
    ],
)
def test_images_have_steps_of_at_most_an_eighth(limit, expected):
    """Each size up to 8, then even sizes; beyond 16, padding is at most an eighth of a batch."""
    assert image_batch_sizes(limit) == expected


@pytest.mark.parametrize(
    ("limit", "tokens", "expected"),
    [
        (1, 8, [1]),
        (32, 8, [1, 2, 4, 8, 16, 32]),
        (32, 64, [1, 2, 4, 8, 10, 12, 14, 16, 20, 24, 28, 32]),
        (100, 16, [1, 2, 4, 8, 16, 32, 40, 48, 56, 64, 80, 96, 100]),
        (6, 512, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_texts_have_finer_steps_for_more_tokens(limit, tokens, expected):
    """Sizes double while launches cost more than tokens, and then grow by a quarter at most."""
    assert text_batch_sizes(limit, tokens) == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [(64, [8, 16, 32, 64]), (77, [8, 16, 32, 64, 77]), (8, [8]), (5, [5])]
)
def test_lengths_double_up_to_the_limit(limit, expected):
    """Lengths double, from 8 tokens."""
    assert text_lengths(limit) == expected


@pytest.mark.parametrize(("limit", "images_", "texts_"), [(32, 20, 33), (64, 28, 46), (256, 44, 78)])
def test_the_number_of_graphs_is_bounded(limit, images_, texts_):
    """The GPU page names these numbers, which determine memory and startup time."""
    assert len(image_batch_sizes(limit)) == images_
    assert sum(len(text_batch_sizes(limit, tokens)) for tokens in text_lengths(64)) == texts_


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_images_come_out_as_without_a_bucket(towers, count):
    """Unused rows of a bucket are discarded, whatever an earlier batch has left there."""
    device = Device()
    forwards = static_images(towers, device)
    forwards.drop(PreparedShape(3))
    forwards(images(6))
    pixels = images(count)

    actual = forwards(pixels)

    torch.testing.assert_close(actual, towers.embed_pixels(pixels), rtol=1e-4, atol=1e-5)
    assert device.ran[-1] == (4 if count == 3 else count,)


@pytest.mark.parametrize(
    ("lengths", "bucket"),
    [((3,), (1, 8)), ((8, 2), (2, 8)), ((9, 1, 4), (4, 16)), ((20,) * 6, (6, 20)), ((17, 2), (2, 20))],
)
def test_texts_come_out_as_without_a_bucket(towers, lengths, bucket):
    """Neither kind of padding changes results, nor do longer texts of an earlier batch."""
    device = Device()
    forwards = static_texts(towers, device)
    forwards(*texts(20, 20, 20, 20, 20, 20))
    tokens = texts(*lengths)

    actual = forwards(*tokens)

    torch.testing.assert_close(actual, towers.embed_tokens(*tokens), rtol=1e-4, atol=1e-5)
    assert device.ran[-1] == bucket


def test_texts_of_a_dropped_shape_go_to_the_cheapest_that_fits(towers):
    """Of two that cost the same, the one for fewer texts."""
    device = Device()
    forwards = static_texts(towers, device)
    forwards.drop(PreparedShape(1, 8))
    forwards.drop(PreparedShape(4, 16))

    forwards(*texts(3))
    forwards(*texts(9, 9, 9))

    assert device.ran == [(1, 16), (4, 20)]


def test_the_first_batch_of_all_is_finite_in_every_row(towers):
    """Rows that were never filled do not give NaN, which some kernels would spread."""
    rows: list[torch.Tensor] = []

    def keep_whole(forward: Forward) -> Forward:
        return lambda: rows.append(forward()) or rows[-1]

    forwards = StaticTexts(towers.embed_tokens, BATCH_SIZE, TOKENS, CPU)
    forwards.capture(keep_whole)

    forwards(*texts(3, 2, 2))

    assert len(rows[-1]) == 4
    assert rows[-1].isfinite().all()


def test_a_batch_that_no_bucket_holds_is_left_to_the_caller(towers):
    """Batches and texts larger than all buckets are not truncated."""
    assert static_images(towers, Device())(images(7)) is None
    assert static_texts(towers, Device())(*texts(3, 3, 3, 3, 3, 3, 3)) is None
    assert static_texts(towers, Device())(*texts(21)) is None


@pytest.mark.parametrize("error", LACKING_MEMORY, ids=str)
def test_buckets_that_do_not_fit_are_left_out(towers, error):
    """If a capture runs out of memory in any way, its size is skipped, and this is logged."""
    with capture_logs() as events:
        forwards = static_images(towers, Device(max_batch_size=2, error=error))

    assert forwards.shapes == [PreparedShape(1), PreparedShape(2)]
    assert [(event["event"], event["batch_size"]) for event in events] == [
        ("cuda_graph_too_large", size) for size in (6, 5, 4, 3)
    ]
    assert forwards(images(3)) is None


def test_a_capture_that_fails_otherwise_is_not_tried_again(towers):
    """The device may be unusable after it."""
    error = RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(CaptureFailed, match="batch of 6 failed: operation not permitted"):
        static_images(towers, Device(max_batch_size=2, error=error))


def test_a_lost_device_is_not_a_failed_capture(towers):
    """Without graphs it would be lost too."""
    error = RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceLost):
        static_texts(towers, Device(max_batch_size=2, error=error))
