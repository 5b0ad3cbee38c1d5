"""Rounding to bfloat16 that keeps the sums of kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alignserve_server.model.runtimes.bfloat16 import balanced

_STEP = 2.0**-7  # between neighbouring bfloat16 numbers, relative to the power of two below them


def _kernels(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _is_bfloat16(values: np.ndarray) -> bool:
    return not (values.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize(("weights", "factor"), [(9, 4), (25, 10)])
def test_the_sum_of_a_kernel_stays(weights, factor):
    """The errors of a kernel cancel, the better the more weights it has."""
    kernels = _kernels((200, weights))

    error = np.abs((balanced(kernels) - kernels).sum(axis=1)).mean()

    nearest = torch.from_numpy(kernels).bfloat16().float().numpy()
    assert error < np.abs((nearest - kernels).sum(axis=1)).mean() / factor


def test_each_weight_becomes_one_of_its_two_neighbours():
    """No weight moves by a whole step of bfloat16."""
    kernels = _kernels((50, 9))

    rounded = balanced(kernels)

    assert _is_bfloat16(rounded)
    assert (np.abs(rounded - kernels) < _STEP * 2.0 ** np.floor(np.log2(np.abs(kernels)))).all()


def test_what_bfloat16_represents_is_not_changed():
    """Weights that are exact already, and zeros of either sign, stay."""
    exact = np.array([[0.0, -0.0, 1.0, -1.5, 3.140625, 2.0**-120]], np.float32)

    assert np.array_equal(balanced(exact).view(np.uint32), exact.view(np.uint32))


def test_a_kernel_of_one_weight_is_rounded_to_the_nearest():
    """There is nothing that could cancel its error."""
    assert balanced(np.array([[1.001], [-1.007]], np.float32)).tolist() == [[1.0], [-1.0078125]]


def test_the_kernels_given_are_not_changed():
    """They may be the weights of a network that is also used in float32."""
    kernels = _kernels((4, 9))
    before = kernels.copy()

    balanced(kernels)

    assert np.array_equal(kernels, before)
