"""The command `alignserve-server keys` on a file of keys."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from alignserve_server.access.keys import Key, KeyRing, Scope, changed_keys, new_key, read_keys
from alignserve_server.cli.keys import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def _add(path: Path, name: str, max_concurrent_requests: int | None = None) -> str:
    with changed_keys(path) as keys:
        key, keys[name] = new_key(
            name, frozenset({Scope.EMBED}), max_concurrent_requests=max_concurrent_requests
        )
    return key


def _found(path: Path, key: str) -> Key | None:
    found = KeyRing(path).find(key)
    return None if found is None else found[1]


def test_add_prints_the_key_and_nothing_else(path: Path, capsys) -> None:
    """So that a script can take it; people are told to keep it."""
    code = run(["--api-keys-file", str(path), "add", "search", "--scopes", "embed,admin"])

    out, err = capsys.readouterr()
    found = _found(path, out.strip())
    assert code == 0
    assert "not shown again" in err
    assert found is not None
    assert found.scopes == {Scope.EMBED, Scope.ADMIN}


def test_add_takes_quotas_and_an_end(path: Path) -> None:
    """All that a key can have can be given."""
    limits = ["--max-requests-per-second", "2.5", "--max-concurrent-requests", "3"]
    code = run(["--api-keys-file", str(path), "add", "batch", *limits, "--expires", "2027-01-31"])

    key = read_keys(path)["batch"]
    assert code == 0
    assert (key.max_requests_per_second, key.max_concurrent_requests) == (2.5, 3)
    assert key.expires == date(2027, 1, 31)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "search"], "key 'search' already exists; revoke it first"),
        (["add", "Big"], "invalid name 'Big'"),
        (["add", "none", "--max-requests-per-second", "0"], "must be greater than 0"),
        (["add", "none", "--max-requests-per-second", "nan"], "must be greater than 0"),
        (["revoke", "nobody"], "unknown key 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_explained(path: Path, capsys, arguments, message) -> None:
    """With exit code 1, and the file as it was."""
    _add(path, "search")
    before = path.read_bytes()

    code = run(["--api-keys-file", str(path), *arguments])

    assert code == 1
    assert message in capsys.readouterr().err
    assert path.read_bytes() == before


def test_list_shows_what_is_not_secret(path: Path, capsys) -> None:
    """Names, scopes, quotas and dates line up."""
    key = _add(path, "search", max_concurrent_requests=8)

    code = run(["--api-keys-file", str(path), "list"])

    out = capsys.readouterr().out
    assert code == 0
    assert out.splitlines()[1].split()[:4] == ["search", "embed", "-", "8"]
    assert key.rpartition("_")[2] not in out


def test_revoke_makes_a_key_invalid(path: Path) -> None:
    """And no other."""
    gone, stays = _add(path, "gone"), _add(path, "stays")

    code = run(["--api-keys-file", str(path), "revoke", "gone"])

    assert code == 0
    assert _found(path, gone) is None
    assert _found(path, stays) is not None


def test_the_file_may_come_from_the_environment(path: Path, monkeypatch, capsys) -> None:
    """The same variable as the server's."""
    monkeypatch.setenv("ALIGNSERVE_API_KEYS_FILE", str(path))

    assert run(["add", "search"]) == 0
    assert run(["list"]) == 0
    assert "search" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["", " ", "none"])
def test_an_empty_variable_is_not_a_file_of_keys(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """It would be the current folder."""
    monkeypatch.setenv("ALIGNSERVE_API_KEYS_FILE", value)

    with pytest.raises(SystemExit) as exited:
        run(["list"])

    assert exited.value.code == 2
