"""A fault on a machine that is lent once costs its own figures, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu.check import Check, CheckFailed
from tests.gpu.earlier import IMAGE_RATE, IMAGES, TEXT_RATE, TEXTS, best_rate
from tests.gpu.machine import DISTRIBUTIONS, install
from tests.gpu.results import Results, read_tables


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """A run that has measured nothing yet."""
    return Check(Results(tmp_path / "results.jsonl", "model", True), tmp_path, tmp_path, False)


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_part_that_fails_does_not_stop_the_others(check: Check) -> None:
    """Whatever a library raises; the tables name each fault, and the step fails in the end."""
    ran: list[int] = []

    with pytest.raises(CheckFailed, match="CUDA error: out of memory; CheckFailed: too low"):
        check.run_all(
            failing(RuntimeError("CUDA error: out of memory")),
            lambda: ran.append(1),
            failing(CheckFailed("too low")),
            lambda: ran.append(2),
        )

    assert ran == [1, 2]
    faults = [row["fault"] for table in read_tables(check.results.file) for row in table.rows]
    assert faults == ["RuntimeError: CUDA error: out of memory", "CheckFailed: too low"]


def test_served_rates_are_compared_with_the_best_graphs(check: Check) -> None:
    """Of images, and of texts of one length; without figures there is no comparison."""
    assert str(best_rate(check, IMAGES, IMAGE_RATE)) == "nan"

    for batch, rate in ((1, 200.0), (32, 2500.0)):
        check.results.measured(IMAGES, {"batch": batch, IMAGE_RATE: rate})
        check.results.measured(TEXTS, {"batch": batch, "tokens": 16, TEXT_RATE: 10 * rate})
    check.results.measured(TEXTS, {"batch": 32, "tokens": 8, TEXT_RATE: 1e6})

    assert best_rate(check, IMAGES, IMAGE_RATE) == 2500.0
    assert best_rate(check, TEXTS, TEXT_RATE, tokens=16) == 25000.0


def test_a_wheel_that_does_not_fit_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bare machine with another Python may have the package, and runs what it can."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "something-1.0-cp27-cp27m-any.whl").write_bytes(b"")

    install(tmp_path / "wheels", tmp_path / "site")

    assert "cannot install something-1.0" in capsys.readouterr().out
    assert len(list((tmp_path / "site").glob("*.dist-info/METADATA"))) == len(DISTRIBUTIONS)
