"""A driver that misbehaves fails its case, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import driver as driver_module
from tests.conformance.cases import Case, Step
from tests.conformance.certificates import make_certificates
from tests.conformance.columns import fill_column
from tests.conformance.deadline import Deadline
from tests.conformance.driver import Driver, DriverError
from tests.conformance.languages import Language
from tests.conformance.matrix import Column
from tests.conformance.servers import CaseServer, Servers

_COMMAND = [sys.executable, str(Path(__file__).with_name("misbehaving.py"))]
_EXPECTED = {"ok": {"embeddings": [[1.0, 0.0]]}}


def _case(name: str = "embed", seconds: float = 20.0) -> Case:
    step = Step("call", {"op": "embed_text", "texts": ["a cat"]}, expect=_EXPECTED)
    return Case(name, name, "fake", [step], seconds=seconds)


class _NoServer:
    """A server that no driver here connects to."""

    port = 9
    variables: Mapping[str, Any] = {}

    def prepare(self) -> None: ...
    def call(self, name: str, arguments: Mapping[str, Any]) -> Any: ...
    def restart(self, *, kill: bool) -> None: ...
    def stop(self) -> None: ...


class _NoServers(Servers):
    """Starts nothing."""

    def _started(self, name: str, definition: Mapping[str, Any]) -> CaseServer:
        return _NoServer()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Servers:
    """The servers of a column."""
    folder = tmp_path_factory.mktemp("servers")
    return _NoServers({"fake": {}}, folder, make_certificates(folder))


@pytest.fixture
def column(servers: Servers, tmp_path: Path):
    """Runs cases with a driver that has a fault, and returns the column."""

    def run(fault: str, cases: Sequence[Case], seconds: float = 60.0) -> Column:
        language = Language("x", "X", tmp_path, tmp_path, [*_COMMAND, fault])
        return fill_column(language, cases, servers, {}, {}, lambda _: None, Deadline(seconds))

    return run


class TestColumn:
    def test_a_driver_that_behaves_passes(self, column) -> None:
        """The versions that it tells are those of the column."""
        filled = column("none", [_case("one"), _case("two")])

        assert [outcome.verdict for outcome in filled.outcomes] == ["passed", "passed"]
        assert filled.versions == {"fault": "1"}

    @pytest.mark.parametrize(
        ("fault", "seconds", "detail"),
        [
            ("hangs", 0.5, "gave no sign of an answer in time"),
            ("dies", 20.0, "ended with code 3"),
            ("garbage", 20.0, "not JSON: b'Hello, world"),
            ("other id", 20.0, "answered something else than request"),
            ("two outcomes", 20.0, "none or several"),
            ("unsupported", 20.0, "unsupported: no such thing"),
            ("wrong", 20.0, "answer.ok.embeddings[0][0] is 0.0, expected 1.0"),
        ],
    )
    def test_a_driver_that_misbehaves_fails_each_case(
        self, column, fault: str, seconds: float, detail: str
    ) -> None:
        """A fresh driver runs the next case."""
        filled = column(fault, [_case("one", seconds), _case("two", seconds)])

        assert [outcome.verdict for outcome in filled.outcomes] == ["failed", "failed"]
        assert all(detail in outcome.detail for outcome in filled.outcomes)

    @pytest.mark.parametrize(("fault", "line"), [("hangs", "waits forever"), ("dies", "out of luck")])
    def test_the_end_of_standard_error_is_shown(self, column, fault: str, line: str) -> None:
        """It says why a driver hung or died."""
        filled = column(fault, [_case(seconds=2.0)])

        assert line in filled.outcomes[0].detail

    @pytest.mark.parametrize(
        ("fault", "detail"),
        [("stays", "after the end of its input"), ("leaves", "ended with code 7")],
    )
    def test_a_driver_that_does_not_end_well_fails_its_last_case(
        self, column, fault: str, detail: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Cases before it keep their verdicts."""
        monkeypatch.setattr(driver_module, "_END_SECONDS", 1.0)

        filled = column(fault, [_case("one"), _case("two")])

        assert [outcome.verdict for outcome in filled.outcomes] == ["passed", "failed"]
        assert detail in filled.outcomes[1].detail

    def test_a_driver_that_does_not_start_fails_every_case(self, servers: Servers, tmp_path: Path) -> None:
        """The command is named."""
        language = Language("x", "X", tmp_path, tmp_path, ["/does/not/exist"])

        filled = fill_column(
            language, [_case("one"), _case("two")], servers, {}, {}, lambda _: None, Deadline(60.0)
        )

        assert [outcome.verdict for outcome in filled.outcomes] == ["failed", "failed"]
        assert "/does/not/exist" in filled.outcomes[0].detail

    def test_a_driver_that_says_nothing_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has a time limit for `hello` too, and its process is gone."""
        monkeypatch.setattr(driver_module, "HELLO_SECONDS", 0.5)

        with pytest.raises(DriverError, match="gave no sign of an answer"):
            Driver([*_COMMAND, "silent"])

    def test_what_starts_after_the_time_is_over_fails(self, column) -> None:
        """It is not skipped: nothing is known of it."""
        filled = column("none", [_case()], seconds=0.0)

        assert [outcome.verdict for outcome in filled.outcomes] == ["failed"]

    def test_a_missing_tool_skips_the_column_and_says_so(self, servers: Servers, tmp_path: Path) -> None:
        """A skipped case is never passed."""
        language = Language("x", "X", tmp_path, tmp_path, _COMMAND, tools=["no-such-compiler"])

        filled = fill_column(language, [_case()], servers, {}, {}, lambda _: None, Deadline(60.0))

        assert "no-such-compiler" in filled.skipped
        assert [outcome.verdict for outcome in filled.outcomes] == ["skipped"]

    def test_a_build_that_fails_fails_every_case(self, servers: Servers, tmp_path: Path) -> None:
        """The end of its output is shown."""
        build = [sys.executable, "-c", "import sys; print('undefined: frobnicate'); sys.exit(2)"]
        language = Language("x", "X", tmp_path, tmp_path / "work", _COMMAND, build=[build])

        filled = fill_column(language, [_case()], servers, {}, {}, lambda _: None, Deadline(60.0))

        assert [outcome.verdict for outcome in filled.outcomes] == ["failed"]
        assert "undefined: frobnicate" in filled.outcomes[0].detail
