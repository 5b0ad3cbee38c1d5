"""Quantized embeddings are as close to the exact ones as their definition allows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from alignserve_server.api import pack_signs, quantize_int8
from hypothesis import given
from hypothesis import strategies as st


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def test_the_largest_element_becomes_127() -> None:
    """Each row has its own scale, which restores the elements."""
    embeddings = rows([0.5, -0.25, 0.0], [0.1, 0.2, -1.27])

    integers, scales = quantize_int8(embeddings)

    assert integers.dtype == np.int8
    assert integers.tolist() == [[127, -64, 0], [10, 20, -127]]
    np.testing.assert_allclose(scales, [0.5 / 127, 0.01], rtol=1e-6)
    np.testing.assert_allclose(integers * scales[:, None], embeddings, atol=0.5 * scales.max())


def test_the_opposite_embedding_has_the_opposite_integers() -> None:
    """-128 is never used."""
    embeddings = np.random.default_rng(1).standard_normal((50, 33)).astype(np.float32)

    integers, scales = quantize_int8(embeddings)
    opposite, same_scales = quantize_int8(-embeddings)

    assert (opposite == -integers).all()
    assert (same_scales == scales).all()


def test_halves_are_rounded_to_even() -> None:
    """As in IEEE 754, so that rounding does not favour a direction."""
    assert quantize_int8(rows([127.0, 0.5, 1.5, 2.5, -0.5, -1.5]))[0].tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("element", [0.0, 1e-45, 1e-38, 3e38])
def test_extreme_rows_have_valid_integers(element: float) -> None:
    """A zero vector stays zero; the smallest and largest floats are scaled like any others."""
    integers, scales = quantize_int8(rows([element, -element, 0.0]))

    largest = 127 if element else 0
    assert integers.tolist() == [[largest, -largest, 0]]
    assert np.isfinite(scales).all()


def test_each_row_is_quantized_by_itself() -> None:
    """The result for an embedding does not depend on others in the call."""
    embeddings = np.random.default_rng(2).standard_normal((8, 640)).astype(np.float32)

    together, scales = quantize_int8(embeddings)

    for row, integers, scale in zip(embeddings, together, scales, strict=True):
        alone, (alone_scale,) = quantize_int8(row[None])
        assert (alone[0] == integers).all()
        assert alone_scale == scale


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=700).filter(any))
def test_int8_keeps_the_direction(elements: list[float]) -> None:
    """Each element moves by half a step at most, which bounds the angle for any vector."""
    exact = rows(elements).astype(np.float64)

    integers = quantize_int8(rows(elements))[0].astype(np.float64)

    cosine = (exact * integers).sum() / np.linalg.norm(exact) / np.linalg.norm(integers)
    assert cosine >= math.sqrt(1 - len(elements) / 254**2) - 1e-9


def test_bits_are_the_signs_from_the_highest_bit() -> None:
    """Only elements above 0 are 1; the last byte is filled up with 0."""
    embeddings = rows([1, -1, 0, 1, -0.0, -1, 1e-45, 1, 1, -1], [-1] * 10, [1] * 10)

    assert pack_signs(embeddings).tolist() == [[0b10010011, 0b10000000], [0, 0], [0xFF, 0b11000000]]


@pytest.mark.parametrize("dimension", [1, 7, 8, 9, 640])
def test_packed_signs_restore(dimension: int) -> None:
    """Unpacking gives the sign of each element, whatever their number."""
    embeddings = np.random.default_rng(dimension).standard_normal((3, dimension)).astype(np.float32)

    packed = pack_signs(embeddings)

    assert packed.shape == (3, math.ceil(dimension / 8))
    assert (np.unpackbits(packed, axis=1, count=dimension) == (embeddings > 0)).all()
