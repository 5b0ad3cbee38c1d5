"""What memory and arithmetic allow at best, for the forward of align-base at 289 x 289 in float16.

Bytes and operations were counted from the operators of the two towers.
"""

from __future__ import annotations

from tests.gpu.check import Check
from tests.gpu.results import read_tables
from tests.gpu.steps.ceilings import COPY, TITLE

IMAGE_FLOP = 16.8e9
TOKEN_FLOP = 159e6
IMAGE_BYTES = 1.007e9  # as it is written: convolution, bias, activation, mean and product are a kernel each
FUSED_BYTES = {"activations fused": 0.451e9, "all fused": 0.281e9}  # what other kernels would move
_H100_COPY_TB = 3.0  # seen on one; if the ceilings were not measured


def copy_rate(check: Check) -> float:
    """Returns the bytes a second that this card copies, read and written, as an earlier step has measured."""
    for table in read_tables(check.results.file):
        if table.title == TITLE and isinstance(rate := table.rows[0].get(COPY), float):
            return rate * 1e12
    return _H100_COPY_TB * 1e12
