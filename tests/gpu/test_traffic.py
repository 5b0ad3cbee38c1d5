"""Counts of the image forward at align-base's size, as the bounds in the README have them."""

from __future__ import annotations

import pytest

from tests.gpu.traffic import meta_towers, traffic_of

pytestmark = pytest.mark.model
pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA on Linux")


def test_fewer_passes_move_less_memory() -> None:
    """In megabytes per image and kernels per batch of 32."""
    from alignserve_server.model.runtimes.kernels.epilogues import EpilogueForward
    from alignserve_server.model.runtimes.kernels.fused import FusedForward

    towers = meta_towers()
    forwards = (towers.embed_pixels_plainly, EpilogueForward(towers), FusedForward(towers))

    counted = [traffic_of(forward) for forward in forwards]

    assert [round(one.bytes / 32e6) for one in counted] == [1007, 603, 284]
    assert [one.kernels for one in counted] == [930, 492, 274]
