"""The benchmarks' inputs are fair to all servers."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.load.inputs import MODALITIES, bodies


@pytest.mark.parametrize("modality", MODALITIES)
def test_no_input_occurs_twice(modality: str) -> None:
    """Two rounds share no input and neither repeats one, so no server gains from a cache."""
    sent = [body for _ in range(2) for body in islice(bodies(modality), 500)]

    assert len(set(sent)) == 1000


def test_rounds_have_texts_of_the_same_length() -> None:
    """No round is easier than another: captions and tags have the same mix of lengths."""
    means = [sum(map(len, islice(bodies("text", seed), 2000))) / 2000 for seed in range(10)]

    assert max(means) / min(means) < 1.03
