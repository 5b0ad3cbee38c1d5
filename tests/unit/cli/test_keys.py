"""The command `alignserve-server keys` on a file of keys."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from alignserve_server.access.keys import KeyRing, Scope, changed_keys, new_key, read_keys
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


class TestCommand:
    """`alignserve-server keys`."""

    def test_add_prints_the_key_and_nothing_else(self, path: Path, capsys) -> None:
        """Scripts can use the output as it is; the advice to save the key goes to standard error."""
        code = run(["--api-keys-file", str(path), "add", "search", "--scopes", "embed,admin"])

        out, err = capsys.readouterr()
        found = KeyRing(path).find(out.strip())
        assert code == 0
        assert "not shown again" in err
        assert found is not None
        assert found[1].scopes == {Scope.EMBED, Scope.ADMIN}

    def test_add_takes_quotas_and_an_expiry_date(self, path: Path) -> None:
        """There is an option for every attribute of a key."""
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
            (["revoke", "unknown"], "unknown key 'unknown'"),
        ],
    )
    def test_errors_are_explained(self, path: Path, capsys, arguments, message) -> None:
        """The exit code is 1, and the file is unchanged."""
        _add(path, "search")
        before = path.read_bytes()

        code = run(["--api-keys-file", str(path), *arguments])

        assert code == 1
        assert message in capsys.readouterr().err
        assert path.read_bytes() == before

    def test_list_shows_everything_except_secrets(self, path: Path, capsys) -> None:
        """Names, scopes, quotas and dates are aligned in columns."""
        key = _add(path, "search", max_concurrent_requests=8)

        code = run(["--api-keys-file", str(path), "list"])

        out = capsys.readouterr().out
        assert code == 0
        assert out.splitlines()[1].split()[:4] == ["search", "embed", "-", "8"]
        assert key.removeprefix("as_search_") not in out

    def test_revoke_makes_a_key_invalid(self, path: Path) -> None:
        """Other keys stay valid."""
        gone, stays = _add(path, "gone"), _add(path, "stays")

        code = run(["--api-keys-file", str(path), "revoke", "gone"])

        ring = KeyRing(path)
        assert code == 0
        assert ring.find(gone) is None
        assert ring.find(stays) is not None

    def test_the_file_may_come_from_the_environment(self, path: Path, monkeypatch, capsys) -> None:
        """The variable is the same as for the server."""
        monkeypatch.setenv("ALIGNSERVE_API_KEYS_FILE", str(path))

        assert run(["add", "search"]) == 0
        assert run(["list"]) == 0
        assert "search" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["", " ", "none"])
def test_an_empty_variable_is_not_a_file_of_keys(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """An empty path would be the current folder."""
    monkeypatch.setenv("ALIGNSERVE_API_KEYS_FILE", value)

    with pytest.raises(SystemExit) as exited:
        run(["list"])

    assert exited.value.code == 2
