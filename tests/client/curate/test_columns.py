"""Names and values of columns."""

from __future__ import annotations

import math

import pytest
from alignserve.curate.columns import number, picture_columns, similarity_column, tokens_column, whole_number
from alignserve.curate.pictures import Picture
from alignserve.datasets.row import Row


@pytest.mark.parametrize(
    ("model", "similarity", "tokens"),
    [
        ("kakaobrain/align-base", "align_similarity_base", "num_tokens_align_base"),
        ("/models/ALIGN-base-v2/", "align_similarity_base_v2", "num_tokens_align_base_v2"),
        ("fake", "fake_similarity", "num_tokens_fake"),
        ("", "model_similarity", "num_tokens_model"),
    ],
)
def test_columns_of_the_server_are_named_for_its_model(model: str, similarity: str, tokens: str) -> None:
    """Like COYO's `clip_similarity_vitb32` and `num_tokens_bert`."""
    assert similarity_column(model) == similarity
    assert tokens_column(model) == tokens


def test_measures_replace_the_columns_of_the_source() -> None:
    """The source may have the size before it was resized, and a hash of another kind."""
    row = Row("key", b"image", "text", {"width": 9, "height": 9, "image_phash": "ffffffffffffffff"})

    columns = picture_columns(row, Picture(600, 200, 5000, "PNG", None, "digest"))

    assert (columns["width"], columns["height"], columns["image_phash"]) == (600, 200, None)
    assert (columns["aspect_ratio"], columns["min_side"]) == (3.0, 200)


def test_the_columns_of_the_source_count_without_an_image() -> None:
    """COYO itself is published without images."""
    row = Row("key", None, "text", {"width": 600.0, "height": "300", "image_phash": "ffffffffffffffff"})

    columns = picture_columns(row, None)

    assert (columns["width"], columns["height"], columns["image_phash"]) == (600, 300, "ffffffffffffffff")
    assert (columns["aspect_ratio"], columns["min_side"], columns["bytes"]) == (2.0, 300, None)


@pytest.mark.parametrize("value", [None, math.nan, "", "many", b"1", [1], 0.0, 0])
def test_values_that_are_not_numbers_are_missing(value: object) -> None:
    """A column of texts may hold numbers; zero is one."""
    assert (number(value) is None) is (value not in (0, b"1"))


def test_sides_of_zero_have_no_ratio() -> None:
    """A source may say 0 by 0 of a picture that it could not load."""
    columns = picture_columns(Row("key", None, "text", {"width": 0, "height": 0}), None)

    assert (columns["aspect_ratio"], columns["min_side"]) == (None, None)
    assert whole_number(1.5) is None


@pytest.mark.parametrize("side", [1e19, -5, math.inf, "1e400", 0.5])
def test_impossible_sides_are_missing(side: object) -> None:
    """One absurd number in a source fails no run: columns have 64 bits."""
    columns = picture_columns(Row("key", None, "text", {"width": side, "height": 200, "bytes": side}), None)

    assert (columns["width"], columns["aspect_ratio"], columns["min_side"]) == (None, None, None)
    assert columns["bytes"] in (None, -5)
