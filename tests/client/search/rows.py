"""Vectors and rows for stores."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from alignserve.search import Entry
from numpy.typing import NDArray

DIMENSION = 8

# Its import takes two seconds, which workers that run none of these tests need not spend.
NEEDS_LANCEDB = pytest.mark.skipif(find_spec("lancedb") is None, reason="needs lancedb")


def vector(seed: int) -> NDArray[np.float32]:
    """Returns a vector of length 1."""
    made = np.random.default_rng(seed).standard_normal(DIMENSION)
    return np.asarray(made / np.linalg.norm(made), np.float32)


def entry(key: str, seed: int = 0, columns: Mapping[str, Any] | None = None) -> Entry:
    """Returns a row of a store."""
    return Entry(key, vector(seed), columns or {})
