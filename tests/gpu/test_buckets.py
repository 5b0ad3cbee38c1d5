"""The batch sizes of graphs fit the batches that callers make; simulated, with an H100's calculated times."""

from __future__ import annotations

import pytest
from alignserve_server.model.runtimes.static_forwards import image_batch_sizes

from tests.gpu.buckets import POWERS_OF_TWO, simulate


def test_small_steps_serve_more_than_powers_of_two() -> None:
    """24 callers lose least to padding now, and lost a fifth before."""
    before, after = (simulate(24, sizes) for sizes in (POWERS_OF_TWO, image_batch_sizes(32)))

    assert after.images_per_second > 1.2 * before.images_per_second


@pytest.mark.parametrize("callers", [1, 2, 8, 17, 32, 40, 64, 200])
def test_no_number_of_callers_loses(callers: int) -> None:
    """Padding is at most an eighth of a batch."""
    before, after = (simulate(callers, sizes) for sizes in (POWERS_OF_TWO, image_batch_sizes(32)))

    assert after.images_per_second >= before.images_per_second
    assert after.mean_rows <= 1.13 * after.mean_batch
