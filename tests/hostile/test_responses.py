"""Small requests with large answers: those too large for the client are refused before any work."""

from __future__ import annotations

import pytest
from alignserve.v1 import align_service_pb2 as pb

from tests.hostile.live import GOOD_IMAGE, LiveServer, Outcome, outcomes_of

pytestmark = pytest.mark.hostile

_REFUSED = Outcome("INVALID_ARGUMENT", "LABELS_INVALID", ("labels",))
_DIFFERENT = [f"{position:085}" for position in range(1000)]
_TOO_LARGE = [
    pytest.param(64, _DIFFERENT, 0, id="7 MB"),
    pytest.param(64, _DIFFERENT, 1000, id="7 MB by top_k"),
    pytest.param(1, ["l" * 32_000] * 400, 0, id="12 MB of one label"),
    pytest.param(64, ["a"] * 997 + ["\U0001f431" * 8000] * 3, 3, id="the three longest labels"),
    pytest.param(64, ["l" * 66_000] + ["a"] * 9, 1, id="a label that is too long itself"),
]


@pytest.mark.parametrize(("images", "labels", "top_k"), _TOO_LARGE)
async def test_a_default_client_is_never_sent_more_than_4_mib(
    live: LiveServer, images: int, labels: list[str], top_k: int
) -> None:
    """In calls and streams, the refusal names its own reason, before any image or label is read."""
    request = pb.ClassifyRequest(
        images=[pb.Image(content=GOOD_IMAGE[:10_000] + bytes([i])) for i in range(images)],
        labels=labels,
        top_k=top_k,
    )
    before = await live.accounts()

    (by_call,) = await outcomes_of([live.stub.Classify(request)])
    by_stream = await live.stream(pb.StreamInferRequest(classify=request) for _ in range(3))

    assert await live.accounts() == before
    expected = _REFUSED
    if max(map(len, labels)) > 32_768:
        expected = Outcome("INVALID_ARGUMENT", "TEXT_TOO_LONG", ("labels[0]",))
    assert [by_call, *by_stream] == [expected] * 4
