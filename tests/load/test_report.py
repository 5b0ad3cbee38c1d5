"""Results are compared with their bounds."""

from __future__ import annotations

import math

import pytest

from tests.load.report import Bar, number, ratio, summary, table


@pytest.mark.parametrize(
    ("figure", "bound", "is_ceiling", "verdict"),
    [
        (0.95, 0.95, False, "met"),
        (0.76, 0.95, False, "missed by 20%"),
        (1.5, 1.5, True, "met"),
        (1.8, 1.5, True, "missed by 20%"),
        (math.nan, 3.0, False, "not measured"),
    ],
)
def test_a_bar_has_a_verdict(figure: float, bound: float, is_ceiling: bool, verdict: str) -> None:
    """A floor is met from above, a ceiling from below, both inclusive; a miss is in percent."""
    bar = Bar("a figure", figure, bound, is_ceiling)

    assert bar.verdict == verdict


def test_the_summary_shows_each_bar_with_its_bound() -> None:
    """Each bar is a row with its figure, its bound and direction, and its verdict."""
    bars = [Bar("images/s ÷ mosec", 4.7, 3.0), Bar("start, s", 4.5, 3.0, is_ceiling=True)]

    text = summary(bars).markdown

    assert "1 of 2 bounds met." in text
    assert "| images/s ÷ mosec | 4.70 | ≥ 3.00 | met |" in text
    assert "| start, s | 4.50 | ≤ 3.00 | missed by 50% |" in text


def test_a_table_is_markdown() -> None:
    """Cells contain the string form of their values."""
    assert table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_a_server_that_answered_nothing_meets_no_bound() -> None:
    """A ratio with zero is NaN, which meets no bound."""
    bars = [Bar("a figure", ratio(*pair), 1.0, is_ceiling=True) for pair in ((3.0, 0.0), (0.0, 3.0))]

    assert not any(bar.is_met for bar in bars)


@pytest.mark.parametrize(("value", "text"), [(1.234, "1.23"), (-12.34, "-12.3"), (1234.5, "1234")])
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    """Three digits, or all digits before the decimal point."""
    assert number(value) == text
