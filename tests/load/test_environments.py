"""A server that cannot be installed is reported with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.peers import environments


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for environments."""
    monkeypatch.setattr(environments, "_FOLDER", tmp_path)
    return tmp_path


def test_a_server_that_was_never_installed_names_the_command() -> None:
    """The reason is how to install it."""
    assert environments.absence("mosec") == "`make peers` installs it"


def test_a_failed_installation_leaves_its_reason(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The reason is the last line of pip's output, and nothing else remains."""
    monkeypatch.setitem(environments._REQUIREMENTS, "broken", [str(folder / "missing-1.0-py3-none-any.whl")])

    environments.install("broken")

    assert "missing-1.0" in (environments.absence("broken") or "")
    assert not (folder / "broken").exists()


def test_an_interrupted_installation_leaves_nothing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An environment without its server does not pass for an installed one."""

    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(environments, "version", interrupted)  # called when the environment has a Python

    with pytest.raises(KeyboardInterrupt):
        environments.install("mosec")

    assert environments.absence("mosec") == "`make peers` installs it"
    assert not (folder / "mosec").exists()
