"""What comes out of the benchmarks: sections with tables, and bars that their figures are held against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A figure that is held against a bound.

    Attributes:
        name: What the figure is, with its unit.
        figure: As measured.
        bound: The least that will do; the most, if `is_ceiling`.
        is_ceiling: Whether less is better.
    """

    name: str
    figure: float
    bound: float
    is_ceiling: bool = False

    @property
    def reached(self) -> bool:
        """Whether the figure is within the bound."""
        return self.figure <= self.bound if self.is_ceiling else self.figure >= self.bound

    @property
    def verdict(self) -> str:
        """Says that it is reached, or by how much of the bound it is missed."""
        if math.isnan(self.figure):
            return "not measured"
        return "reached" if self.reached else f"missed by {abs(self.figure / self.bound - 1):.0%}"


@dataclass(frozen=True)
class Section:
    """One subject of the results."""

    title: str
    paragraphs: Sequence[str]  # text and tables
    bars: Sequence[Bar] = ()

    @property
    def markdown(self) -> str:
        """Returns it as it is printed."""
        return "\n\n".join([f"## {self.title}", *self.paragraphs])


def summary(bars: Sequence[Bar]) -> Section:
    """Returns the bars of all sections as a section."""
    rows = [
        (bar.name, number(bar.figure), f"{'≤' if bar.is_ceiling else '≥'} {number(bar.bound)}", bar.verdict)
        for bar in bars
    ]
    reached = sum(bar.reached for bar in bars)
    return Section(
        "Summary",
        [f"{reached} of {len(bars)} reached.", table(("figure", "measured", "bound", "verdict"), rows)],
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def ratio(figure: float, other: float) -> float:
    """Returns figure ÷ other, or NaN if either is 0: where nothing was answered in time, nothing compares."""
    return figure / other if figure and other else math.nan


def number(value: float) -> str:
    """Returns a figure with as many decimals as its size deserves."""
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"
