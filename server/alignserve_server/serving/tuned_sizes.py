"""Keeps measured batch sizes and fixed costs in a file of the cache directory, for the next start.

They are valid for one model on one kind of machine. These facts determine the name of the file, and are
compared with its content. A file that is unreadable or does not match is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from alignserve_server.host.watched_files import read_whole
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_CPU_INFO = Path("/proc/cpuinfo")

Facts = Mapping[str, "str | int | None"]


class TunedSizes:
    """The measured batch sizes and fixed costs of one model on one kind of machine."""

    def __init__(self, folder: Path, fingerprint: str, facts: Facts) -> None:
        """Does not read the file yet.

        Args:
            folder: Contains the files; created when the first one is written.
            fingerprint: Of the model.
            facts: Everything else that the sizes depend on.
        """
        self._facts = {"fingerprint": fingerprint, **facts}
        digest = hashlib.blake2b(json.dumps(self._facts, sort_keys=True).encode(), digest_size=8)
        self._path = folder / f"{digest.hexdigest()}.json"

    def read(self, limits: Mapping[str, int]) -> dict[str, int]:
        """Returns the saved sizes of the modalities in `limits`, except those above the limit."""
        return self._read("max_batch_size", limits)

    def read_overheads(self, limits: Mapping[str, int]) -> dict[str, int]:
        """Returns the saved fixed costs of batches, in the same way."""
        return self._read("overhead", limits)

    def _read(self, name: str, limits: Mapping[str, int]) -> dict[str, int]:
        try:
            kept = json.loads(read_whole(self._path, pipe_seconds=0.0))
            numbers = kept[name] if kept["facts"] == self._facts else {}
            return {
                modality: number
                for modality, limit in limits.items()
                if type(number := numbers.get(modality)) is int and 1 <= number <= limit
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}

    def write(self, sizes: Mapping[str, int], overheads: Mapping[str, int] = MappingProxyType({})) -> None:
        """Saves sizes and fixed costs atomically; logs a warning if that fails."""
        kept = {"facts": self._facts, "max_batch_size": dict(sizes), "overhead": dict(overheads)}
        content = json.dumps(kept, indent=2)
        draft = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(content)
            draft.replace(self._path)  # atomic, even if another process writes it
        except OSError as error:
            _log.warning("batch_sizes_not_saved", file=str(self._path), reason=str(error))
            with suppress(OSError):
                draft.unlink()


def cpu_model() -> str:
    """Returns the name of the processor, as far as the system reports it."""
    with suppress(OSError):
        for line in _CPU_INFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
