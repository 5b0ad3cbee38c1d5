"""API keys, each with its scopes and quotas. The file contains salted hashes, never a key.

A key is `as_NAME_SECRET`. The secret is 32 random bytes and cannot be guessed, so a fast hash is enough; slow
hashes protect passwords that people choose. Names are public.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from alignserve_server.errors import StartupError
from alignserve_server.host.watched_files import WatchedFiles, read_whole
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_PREFIX = "as"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")  # no underscore, which ends it in a key
_SECRET_BYTES = 32
_PIPE_SECONDS = 10.0  # for a secret that another process is fetching
_PERSONALIZATION = b"alignserve-key"


class Scope(StrEnum):
    """A permission that a key can have."""

    EMBED = "embed"  # EmbedImage, EmbedText, EmbedQuery, Compare, and stream items of these kinds
    CLASSIFY = "classify"  # Classify, Compare, and stream items of these kinds
    ADMIN = "admin"  # only what every key may do: GetModelInfo and reflection


class Key(BaseModel):
    """The record of a key, without the key itself.

    Attributes:
        salt: In hex; different for each key, so that hashes of equal secrets differ.
        hash: In hex; of salt and secret.
        scopes: What it permits.
        max_requests_per_second: Limit on calls and stream items; None for no limit.
        max_concurrent_requests: Limit on concurrent calls; a stream is one call. None for no limit.
        created: The day on which it was created.
        expires: The first day on which it is no longer valid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: frozenset[Scope]
    max_requests_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_concurrent_requests: Annotated[int, Field(ge=1)] | None = None
    created: date
    expires: date | None = None

    def matches(self, secret: str) -> bool:
        """Returns whether the secret is right, in a time that does not depend on how much of it is right."""
        return hmac.compare_digest(_hash(secret, bytes.fromhex(self.salt)), bytes.fromhex(self.hash))

    def has_expired(self, today: date) -> bool:
        return self.expires is not None and today >= self.expires


_KEYS = TypeAdapter(dict[str, Key])
_DUMMY_KEY = Key(
    salt="00" * 16, hash="00" * 32, scopes=frozenset(), created=date.min
)  # compared with if the name is unknown, so that it takes as long


class KeysError(Exception):
    """The keys cannot be read or changed; the message says why."""


def new_key(
    name: str,
    scopes: frozenset[Scope],
    *,
    max_requests_per_second: float | None = None,
    max_concurrent_requests: int | None = None,
    expires: date | None = None,
) -> tuple[str, Key]:
    """Creates a key; returns the key, for its owner, and the record to store."""
    if not _NAME.fullmatch(name):
        raise KeysError(
            f"invalid name {name!r}: use 1-63 characters from a-z, 0-9 and '-', not starting with '-'"
        )
    secret, salt = secrets.token_urlsafe(_SECRET_BYTES), secrets.token_bytes(16)
    kept = Key(
        salt=salt.hex(),
        hash=_hash(secret, salt).hex(),
        scopes=scopes,
        max_requests_per_second=max_requests_per_second,
        max_concurrent_requests=max_concurrent_requests,
        created=_today(),
        expires=expires,
    )
    return f"{_PREFIX}_{name}_{secret}", kept


def read_keys(path: Path, *, pipe_seconds: float = _PIPE_SECONDS) -> dict[str, Key]:
    """Reads a keys file; returns the keys by name. For the arguments, see `read_whole`.

    Raises:
        KeysError: The file cannot be read or is not a keys file.
    """
    try:
        return _KEYS.validate_json(read_whole(path, pipe_seconds=pipe_seconds))
    except OSError as error:
        raise KeysError(f"cannot read the keys in {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise KeysError(f"{path} is not a valid keys file: {where or 'file'}: {first['msg']}") from error


@contextmanager
def changed_keys(path: Path) -> Iterator[dict[str, Key]]:
    """Yields the keys of a file for changes, and writes them when the block ends without an error.

    Other writers wait until then. Readers see either all old keys or all new ones.

    Raises:
        KeysError: The file cannot be read or written, or is not a keys file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = read_keys(path) if path.exists() else {}
            yield keys
            _write(path, keys)
    except OSError as error:
        raise KeysError(f"cannot change the keys in {path}: {error.strerror}") from error


class KeyRing:
    """The keys of a file, reloaded when it changes. If that fails, the current keys stay in use."""

    def __init__(
        self,
        path: Path,
        publish_names: Callable[[Collection[str]], object] = lambda _: None,
        today: Callable[[], date] | None = None,
    ) -> None:
        """Reads the file.

        Args:
            path: Path of the file.
            publish_names: Called with the names of all keys, now and after each reload.
            today: Returns the date.

        Raises:
            StartupError: It cannot be read or is not a keys file.
        """
        self._path = path
        self._publish_names = publish_names
        self._today = today or _today
        self._files = WatchedFiles([path])
        try:
            self._keys: Mapping[str, Key] = read_keys(path)
        except KeysError as error:
            raise StartupError(f"{error}; create one with 'alignserve-server keys add'") from error
        self._publish_names(self._keys)
        if not self._keys:
            self._warn_of_empty_file()

    def find(self, key: str) -> tuple[str, Key] | None:
        """Returns the name and record of a key, or None if it is not, or no longer, valid."""
        self._reload_if_changed()
        prefix, _, rest = key.partition("_")
        name, _, secret = rest.partition("_")
        known = self._keys.get(name, _DUMMY_KEY)
        is_right = known.matches(secret) and prefix == _PREFIX
        if not is_right or known is _DUMMY_KEY or known.has_expired(self._today()):
            return None
        return name, known

    def renewed(self, name: str, key: Key) -> Key | None:
        """Returns the current record of a key that was found before, or None if it is no longer valid."""
        self._reload_if_changed()
        known = self._keys.get(name)
        if known is None or known.hash != key.hash or known.has_expired(self._today()):
            return None
        return known

    def _reload_if_changed(self) -> None:
        if not self._files.have_changed():
            return
        try:
            self._keys = read_keys(self._path, pipe_seconds=0.0)  # the event loop waits
        except KeysError as error:
            self._files.invalidate()  # the file may be valid and only the permission to read it missing
            _log.error("api_keys_reload_failed", reason=str(error), kept=len(self._keys))
        else:
            _log.info("api_keys_reloaded", count=len(self._keys))
            self._publish_names(self._keys)
            if not self._keys:  # the last key may have been revoked, probably by mistake
                self._warn_of_empty_file()

    def _warn_of_empty_file(self) -> None:
        _log.warning(
            "no_api_keys", file=str(self._path), advice="add a key; until then every call is refused"
        )


def _hash(secret: str, salt: bytes) -> bytes:
    secret_bytes = secret.encode(errors="replace")
    return hashlib.blake2b(secret_bytes, salt=salt, person=_PERSONALIZATION, digest_size=32).digest()


def _write(path: Path, keys: Mapping[str, Key]) -> None:
    content = {
        name: key.model_dump(mode="json", exclude_none=True) | {"scopes": sorted(key.scopes)}
        for name, key in sorted(keys.items())
    }
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:  # mkstemp's mode is 0600
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            _copy_ownership(Path(temporary), path.stat())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def _copy_ownership(new: Path, old: os.stat_result) -> None:
    """Gives the new file the owner and mode of the old one: the server may run as another user."""
    os.chown(new, old.st_uid, old.st_gid)
    new.chmod(stat.S_IMODE(old.st_mode))


def _today() -> date:
    return datetime.now(UTC).date()
