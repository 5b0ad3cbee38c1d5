"""Cuts by fraction: exact, with ties decided the same each time, however little fits into memory."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from alignserve.curate.fractions import ScoredRows, nth_highest, value_ranks


def kept(
    folder: Path,
    values: list[float],
    fraction: str,
    *,
    keys: list[str] | None = None,
    room_rows: int = 1 << 20,
) -> set[str]:
    """Returns the keys that stay."""
    keys = keys or [f"row {number}" for number in range(len(values))]
    rows = ScoredRows(folder / "scores", room_rows)
    rows.add(values, keys, range(len(values)))
    dropped = {int(row) for block in rows.dropped(rows.cutoff(Fraction(fraction))) for row in block}
    return {key for number, key in enumerate(keys) if number not in dropped}


@pytest.mark.parametrize(
    ("fraction", "count"), [("0", 0), ("0.3", 30), ("0.29", 29), ("0.295", 29), ("1", 100), ("0.999", 99)]
)
@pytest.mark.parametrize("room_rows", [1, 7, 1 << 20])
def test_a_fraction_is_exact_and_rounded_down(
    tmp_path: Path, fraction: str, count: int, room_rows: int
) -> None:
    """The best rows stay, and 0.29 of 100 rows are 29, although 0.29 times 100 is less in floating point."""
    values = list(np.random.default_rng(1).normal(size=100))

    found = kept(tmp_path, values, fraction, room_rows=room_rows)

    best = sorted(range(100), key=lambda row: -values[row])[:count]
    assert found == {f"row {row}" for row in best}


@pytest.mark.parametrize("room_rows", [1, 1 << 20])
def test_ties_are_decided_the_same_in_any_order(tmp_path: Path, room_rows: int) -> None:
    """Of equal values, those whose keys have the lowest hashes stay."""
    keys = [f"photo {number}" for number in range(50)]
    values = {key: 0.25 if number % 5 else 0.5 for number, key in enumerate(keys)}
    shuffled = list(np.random.default_rng(2).permutation(keys))

    first = kept(tmp_path, [values[key] for key in keys], "0.5", keys=keys, room_rows=room_rows)
    second = kept(tmp_path, [values[key] for key in shuffled], "0.5", keys=shuffled, room_rows=room_rows)

    assert len(first) == 25
    assert first == second
    assert {key for key in keys if values[key] == 0.5} < first


def test_all_equal_values_are_cut_exactly(tmp_path: Path) -> None:
    """A column with one value is one large tie."""
    assert len(kept(tmp_path, [0.1] * 1000, "0.3", room_rows=10)) == 300


def test_zero_has_one_value(tmp_path: Path) -> None:
    """0.0 and -0.0 are a tie."""
    assert kept(tmp_path, [0.0, -0.0, -1.0], "0.67", keys=["a", "b", "c"]) == {"a", "b"}


def test_no_rows_have_a_cutoff(tmp_path: Path) -> None:
    """Nothing to keep, and nothing to fail on."""
    assert kept(tmp_path, [], "0.5") == set()


def test_ranks_are_in_the_order_of_values() -> None:
    """For values of both signs and all sizes."""
    values = np.array([-np.inf, -1e300, -2.0, -1e-300, 0.0, 5e-324, 0.1, 2.0, np.inf])

    ranks = value_ranks(values)

    assert list(ranks) == sorted(ranks)
    assert len(set(ranks)) == len(values)


def test_the_nth_highest_counts_its_equals() -> None:
    """The second result is how many of the equal ones are needed."""
    block = np.array([5, 9, 9, 9, 1], np.uint64)

    assert [nth_highest(lambda: iter([block]), n, 1) for n in (1, 3, 4, 5)] == [
        (9, 1),
        (9, 3),
        (5, 1),
        (1, 1),
    ]
