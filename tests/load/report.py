"""The results of the benchmarks: sections with tables, and figures compared with bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A figure that is compared with a bound.

    Attributes:
        name: Name of the figure, with its unit.
        figure: Measured value.
        bound: Minimum to reach, or maximum if `is_ceiling`.
        is_ceiling: Whether lower is better.
    """

    name: str
    figure: float
    bound: float
    is_ceiling: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the figure is within the bound."""
        return self.figure <= self.bound if self.is_ceiling else self.figure >= self.bound

    @property
    def verdict(self) -> str:
        """Returns 'met', or by what share of the bound it is missed."""
        if math.isnan(self.figure):
            return "not measured"
        return "met" if self.is_met else f"missed by {abs(self.figure / self.bound - 1):.0%}"


@dataclass(frozen=True)
class Section:
    """One section of the results."""

    title: str
    paragraphs: Sequence[str]  # text and tables
    bars: Sequence[Bar] = ()

    @property
    def markdown(self) -> str:
        """Returns the section in Markdown."""
        return "\n\n".join([f"## {self.title}", *self.paragraphs])


def summary(bars: Sequence[Bar]) -> Section:
    """Returns a section with the bars of all sections."""
    rows = [
        (bar.name, number(bar.figure), f"{'≤' if bar.is_ceiling else '≥'} {number(bar.bound)}", bar.verdict)
        for bar in bars
    ]
    met = sum(bar.is_met for bar in bars)
    return Section(
        "Summary",
        [f"{met} of {len(bars)} bounds met.", table(("figure", "measured", "bound", "verdict"), rows)],
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def ratio(figure: float, other: float) -> float:
    """Returns figure ÷ other, or NaN if either is 0: no answers, no comparison."""
    return figure / other if figure and other else math.nan


def number(value: float) -> str:
    """Returns a figure with a number of decimals that fits its size."""
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"
