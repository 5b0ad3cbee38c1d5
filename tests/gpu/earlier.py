"""The rates of the graphs, without a server, which an earlier step has measured."""

from __future__ import annotations

import math

from tests.gpu.check import Check
from tests.gpu.results import Value, read_tables

IMAGES, IMAGE_RATE = "Images by batch size", "images/s"
TEXTS, TEXT_RATE = "Texts by batch size and length", "texts/s"


def best_rate(check: Check, title: str, column: str, **columns: Value) -> float:
    """Returns the highest rate of an earlier step's table, of the rows with these columns; NaN if none."""
    rates = [
        rate
        for table in read_tables(check.results.file)
        for row in table.rows
        if table.title == title
        and columns.items() <= row.items()
        and isinstance(rate := row.get(column), float)
    ]
    return max(rates, default=math.nan)
