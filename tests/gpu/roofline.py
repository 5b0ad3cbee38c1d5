"""Upper bounds from memory and arithmetic, for the forward of align-base at 289 x 289 in float16.

Bytes and operations were counted from the operators of the two towers.
"""

from __future__ import annotations

from tests.gpu.check import Check
from tests.gpu.results import read_tables
from tests.gpu.steps.ceilings import COPY, TITLE

IMAGE_FLOP = 16.8e9
TOKEN_FLOP = 159e6
IMAGE_BYTES = {"plain": 1.007e9, "epilogues": 0.603e9, "fused": 0.284e9}  # by kernels; see test_traffic.py
_H100_COPY_TB = 3.0  # measured on one; used if the ceilings were not measured


def copy_rate(check: Check) -> float:
    """Returns this card's copy rate from an earlier step, in bytes read and written per second."""
    for table in read_tables(check.results.file):
        if table.title == TITLE and isinstance(rate := table.rows[0].get(COPY), float):
            return rate * 1e12
    return _H100_COPY_TB * 1e12
