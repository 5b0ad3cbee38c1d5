"""API keys: who may call what, and how much. The file holds salted hashes, never a key.

A key is `as_NAME_SECRET`. The secret is 32 random bytes, so that guessing is hopeless and a fast hash enough;
slow ones protect passwords, which people choose. Names are public.
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
_PIPE_SECONDS = 10.0  # for a secret that is being fetched
_PERSON = b"alignserve-key"


class Scope(StrEnum):
    """What a key may be used for."""

    EMBED = "embed"  # EmbedImage, EmbedText and such items of a stream
    CLASSIFY = "classify"  # Classify and such items of a stream
    ADMIN = "admin"  # no more than any key may: GetModelInfo and reflection


class Key(BaseModel):
    """What is known of a key: all but the key.

    Attributes:
        salt: Hex; differs from key to key, so that equal hashes tell nothing.
        hash: Hex; of salt and secret.
        scopes: What it may be used for.
        max_requests_per_second: Calls and stream items; None is no limit.
        max_concurrent_requests: Calls at once, of which a stream is one; None is no limit.
        created: The day on which it was made.
        expires: The first day on which it is not valid any more.
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
        """Says whether it is the secret's, in a time that does not depend on how much of it is right."""
        return hmac.compare_digest(_hash(secret, bytes.fromhex(self.salt)), bytes.fromhex(self.hash))

    def has_expired(self, today: date) -> bool:
        return self.expires is not None and today >= self.expires


_KEYS = TypeAdapter(dict[str, Key])
_NOBODY = Key(
    salt="00" * 16, hash="00" * 32, scopes=frozenset(), created=date.min
)  # compared with where there is no such name, so that this takes as long


class KeysError(Exception):
    """Keys cannot be read or changed so; the message says why."""


def new_key(
    name: str,
    scopes: frozenset[Scope],
    *,
    max_requests_per_second: float | None = None,
    max_concurrent_requests: int | None = None,
    expires: date | None = None,
) -> tuple[str, Key]:
    """Makes a key; returns it, for its owner, and what is kept of it."""
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
    """Reads a file of keys by name.

    Args:
        path: See `read_whole`.
        pipe_seconds: See there.

    Raises:
        KeysError: It cannot be read, or is no file of keys.
    """
    try:
        return _KEYS.validate_json(read_whole(path, pipe_seconds=pipe_seconds))
    except OSError as error:
        raise KeysError(f"cannot read the keys in {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise KeysError(f"{path} is no file of keys: {where or 'file'}: {first['msg']}") from error


@contextmanager
def changed_keys(path: Path) -> Iterator[dict[str, Key]]:
    """Yields the keys of a file, to be changed; writes them when the block ends without an error.

    Others who change it wait meanwhile. Readers see either all the old or all the new ones.

    Raises:
        KeysError: It cannot be read or written, or is no file of keys.
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
    """The keys of a file, read again when it changes. A file that cannot be read changes nothing."""

    def __init__(
        self,
        path: Path,
        tell_names: Callable[[Collection[str]], object] = lambda _: None,
        today: Callable[[], date] | None = None,
    ) -> None:
        """Reads the file.

        Args:
            path: Where it is.
            tell_names: Takes the names of all keys, now and whenever they have been read again.
            today: Returns the date.

        Raises:
            StartupError: It cannot be read, or is no file of keys.
        """
        self._path = path
        self._tell_names = tell_names
        self._today = today or _today
        self._files = WatchedFiles([path])
        try:
            self._keys: Mapping[str, Key] = read_keys(path)
        except KeysError as error:
            raise StartupError(f"{error}; make one with 'alignserve-server keys add'") from error
        self._tell_names(self._keys)
        if not self._keys:
            self._warn_of_none()

    def find(self, key: str) -> tuple[str, Key] | None:
        """Returns the name of a key and what is known of it, or None if it is not, or no longer, valid."""
        self._keep_up()
        prefix, _, rest = key.partition("_")
        name, _, secret = rest.partition("_")
        known = self._keys.get(name, _NOBODY)
        is_right = known.matches(secret) and prefix == _PREFIX
        if not is_right or known is _NOBODY or known.has_expired(self._today()):
            return None
        return name, known

    def renewed(self, name: str, key: Key) -> Key | None:
        """Returns what is known now of a key that was found before, or None if it is not valid any more."""
        self._keep_up()
        known = self._keys.get(name)
        if known is None or known.hash != key.hash or known.has_expired(self._today()):
            return None
        return known

    def _keep_up(self) -> None:
        if not self._files.have_changed():
            return
        try:
            self._keys = read_keys(self._path, pipe_seconds=0.0)  # the event loop waits
        except KeysError as error:
            self._files.invalidate()  # the file may be right, and the right to read it be missing
            _log.error("api_keys_reload_failed", reason=str(error), kept=len(self._keys))
        else:
            _log.info("api_keys_reloaded", count=len(self._keys))
            self._tell_names(self._keys)
            if not self._keys:  # the last one may have been revoked, but few mean to
                self._warn_of_none()

    def _warn_of_none(self) -> None:
        _log.warning("no_api_keys", file=str(self._path), advice="add one, or every call is refused")


def _hash(secret: str, salt: bytes) -> bytes:
    secret_bytes = secret.encode(errors="replace")
    return hashlib.blake2b(secret_bytes, salt=salt, person=_PERSON, digest_size=32).digest()


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
            _give_away(Path(temporary), path.stat())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def _give_away(new: Path, old: os.stat_result) -> None:
    """Lets those read the new file who could read the old one: the server may run as another user."""
    os.chown(new, old.st_uid, old.st_gid)
    new.chmod(stat.S_IMODE(old.st_mode))


def _today() -> date:
    return datetime.now(UTC).date()
