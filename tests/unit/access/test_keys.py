"""API keys are created once, stored as salted hashes, and valid until they are revoked or expire."""

from __future__ import annotations

import json
import os
import stat
from datetime import date
from pathlib import Path

import pytest
from alignserve_server.access.keys import KeyRing, KeysError, Scope, changed_keys, new_key
from alignserve_server.errors import StartupError

EMBED = frozenset({Scope.EMBED})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is checked with every look-up instead of once per second."""
    monkeypatch.setattr("alignserve_server.host.watched_files._INTERVAL_SECONDS", 0.0)


def _add(path: Path, name: str, **limits) -> str:
    with changed_keys(path) as keys:
        key, keys[name] = new_key(name, EMBED, **limits)
    return key


def _kept(**spoilt: str) -> str:
    kept = {"salt": "00" * 16, "hash": "00" * 32, "scopes": ["embed"], "created": "2026-11-25"}
    return json.dumps({"a": kept | spoilt})


def _ring(path: Path, today: str = "2026-11-25") -> KeyRing:
    return KeyRing(path, today=lambda: date.fromisoformat(today))


def test_a_valid_key_is_found(path: Path) -> None:
    """The result has its name, and its scopes from the file."""
    key = _add(path, "search")
    _add(path, "other")

    found = _ring(path).find(key)

    assert found is not None
    name, known = found
    assert (name, known.scopes) == ("search", EMBED)


def test_the_file_does_not_contain_the_secret(path: Path) -> None:
    """The file is of no use to someone who reads it, and only its owner can read it."""
    key = _add(path, "search")

    content = path.read_text()

    assert key.removeprefix("as_search_") not in content
    assert key.encode().hex() not in content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_equal_secrets_look_different(path: Path) -> None:
    """Salts differ, so hashes cannot be looked up or compared."""
    _add(path, "a")
    _add(path, "b")

    a, b = json.loads(path.read_text()).values()

    assert a["salt"] != b["salt"]
    assert a["hash"] != b["hash"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key[:-1],
        lambda key: key + "x",
        lambda key: key.replace("search", "other"),
        lambda key: key.replace("search", "nobody"),
        lambda key: key.removeprefix("as"),
        lambda _: "",
        lambda _: "as_search_",
        lambda _: "_" * 10_000,
        lambda _: "as_search_\udcff",
    ],
    ids=["short", "long", "another's", "unknown", "no prefix", "empty", "no secret", "bars", "no text"],
)
def test_an_invalid_key_is_not_found(path: Path, spoil) -> None:
    """The result is the same, whatever is wrong with it."""
    key = _add(path, "search")
    _add(path, "other")

    assert _ring(path).find(spoil(key)) is None


@pytest.mark.parametrize(
    ("today", "is_valid"), [("2026-12-31", True), ("2027-01-01", False), ("2027-01-02", False)]
)
def test_a_key_expires(path: Path, today: str, is_valid: bool) -> None:
    """It is invalid from the given day on."""
    key = _add(path, "search", expires=date(2027, 1, 1))

    assert (_ring(path, today).find(key) is not None) == is_valid


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a b", "x" * 64, "ä"])
def test_an_invalid_name_is_refused(path: Path, name: str) -> None:
    """Nothing is written."""
    with pytest.raises(KeysError, match="invalid name"):
        _add(path, name)

    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"a": {}}', _kept(salt="zz" * 16), _kept(salt="00" * 20), _kept(hash="")],
    ids=["empty", "list", "cut", "void", "hex", "long salt", "no hash"],
)
def test_an_invalid_keys_file_prevents_the_start(path: Path, content: str) -> None:
    """The message names the file. The server must not start and refuse, or permit, every call."""
    path.write_text(content)

    with pytest.raises(StartupError, match=r"keys\.json is not a valid keys file"):
        KeyRing(path)


def test_a_missing_file_prevents_the_start(path: Path) -> None:
    """The message says how to create one."""
    with pytest.raises(StartupError, match="alignserve-server keys add"):
        KeyRing(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
    ],
    ids=["empty", "cut", "zeros", "gone", "a folder", "a broken link"],
)
def test_a_damaged_file_does_not_change_the_keys(path: Path, looks_always, capfd, spoil) -> None:
    """It admits no one new and locks no one out, and it is logged."""
    key = _add(path, "search")
    ring = _ring(path)

    spoil(path)

    assert ring.find(key) is not None
    assert ring.find("as_other_secret") is None
    assert "api_keys_reload_failed" in capfd.readouterr().out


def test_a_file_without_keys_refuses_every_call_with_a_warning(path: Path, looks_always, capfd) -> None:
    """The last key can be revoked; the warning is for operators who did so by mistake."""
    key = _add(path, "search")
    ring = _ring(path)

    with changed_keys(path) as keys:
        keys.clear()

    assert ring.find(key) is None
    assert "no_api_keys" in capfd.readouterr().out


def test_a_server_that_starts_without_keys_warns(path: Path, capfd) -> None:
    """It starts all the same, since keys can be added later."""
    with changed_keys(path):
        pass

    _ring(path)

    assert "no_api_keys" in capfd.readouterr().out


def test_a_change_that_fails_changes_nothing(path: Path) -> None:
    """The file is replaced as a whole or not at all."""
    _add(path, "a")
    before = path.read_bytes()

    with pytest.raises(KeyError), changed_keys(path) as keys:
        keys["a"] = keys["nobody"]

    assert path.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a file")
def test_a_change_keeps_the_owner_of_the_file(path: Path) -> None:
    """A server that runs as another user can still read it after `keys revoke`."""
    _add(path, "a")
    os.chown(path, 1234, 4321)
    path.chmod(0o640)

    _add(path, "b")

    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o640)
