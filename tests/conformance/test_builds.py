"""Builds are repeated when the network fails, and bounded in time."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.conformance import builds

_COUNTED = """
import pathlib, sys
path = pathlib.Path("attempts")
count = len(path.read_text()) if path.exists() else 0
path.write_text("x" * (count + 1))
print({message!r})
sys.exit(0 if count == {failures} else 1)
"""


def _command(message: str, failures: int) -> list[str]:
    return [sys.executable, "-c", _COUNTED.format(message=message, failures=failures)]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "_WAIT_SECONDS", (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "message",
    [
        "dial tcp: i/o timeout: Connection timed out",
        "npm error code ECONNRESET",
        "spurious network error (3 tries remaining)",
        "Temporary failure resolving 'deb.example'",
        "ReadTimeoutError: 503 Service Unavailable",
        "Could not transfer artifact org.example:x:pom:1",
    ],
)
def test_a_command_is_repeated_when_the_network_fails(tmp_path: Path, message: str) -> None:
    """The output is that of the attempt that succeeded."""
    output = builds.run(_command(message, failures=2), tmp_path, 60.0, {})

    assert message in output
    assert (tmp_path / "attempts").read_text() == "xxx"


def test_other_failures_are_not_repeated(tmp_path: Path) -> None:
    """A program that does not compile will not do so the next time."""
    with pytest.raises(builds.BuildFailed, match="undefined: frobnicate"):
        builds.run(_command("undefined: frobnicate", failures=9), tmp_path, 60.0, {})

    assert (tmp_path / "attempts").read_text() == "x"


def test_a_network_that_stays_away_ends_the_build(tmp_path: Path) -> None:
    """Attempts are bounded."""
    with pytest.raises(builds.BuildFailed, match="Connection refused"):
        builds.run(_command("Connection refused", failures=99), tmp_path, 60.0, {})

    assert len((tmp_path / "attempts").read_text()) == builds.ATTEMPTS


def test_a_command_that_hangs_is_killed(tmp_path: Path) -> None:
    """Its output so far is shown."""
    command = [sys.executable, "-u", "-c", "import time; print('compiling'); time.sleep(600)"]
    start = time.monotonic()

    with pytest.raises(builds.BuildFailed, match=r"(?s)took more than 2 s.*compiling"):
        builds.build([command], tmp_path, 2.0, {})

    assert time.monotonic() - start < 300


def test_variables_are_added_to_the_environment(tmp_path: Path) -> None:
    """The user's own stay."""
    command = [sys.executable, "-c", "import os; print(os.environ['FLAVOR'], 'PATH' in os.environ)"]

    assert builds.run(command, tmp_path, 60.0, {"FLAVOR": "mint"}).strip() == "mint True"


def test_a_missing_tool_is_named() -> None:
    """Tools that are there are not."""
    with pytest.raises(builds.Missing, match=r"^no-such-tool not on PATH$"):
        builds.require(["sh", "no-such-tool"])
