"""Batch sizes that were measured before, in a file of the cache folder, for the next start.

A size holds for one model on one kind of machine, so what it was measured with names the file, and is
compared with what the file says. A file that cannot be read or does not fit is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from alignserve_server.host.watched_files import read_whole
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_CPU_INFO = Path("/proc/cpuinfo")

Facts = Mapping[str, "str | int | None"]


class TunedSizes:
    """The file of one model on one kind of machine."""

    def __init__(self, folder: Path, fingerprint: str, facts: Facts) -> None:
        """Names the file.

        Args:
            folder: Where such files are; made when the first is written.
            fingerprint: Of the model.
            facts: What else the sizes depend on.
        """
        self._facts = {"fingerprint": fingerprint, **facts}
        digest = hashlib.blake2b(json.dumps(self._facts, sort_keys=True).encode(), digest_size=8)
        self._path = folder / f"{digest.hexdigest()}.json"

    def read(self, limits: Mapping[str, int]) -> dict[str, int]:
        """Returns the sizes that were kept, of the modalities in `limits` and not beyond those."""
        try:
            kept = json.loads(read_whole(self._path, pipe_seconds=0.0))
            sizes = kept["max_batch_size"] if kept["facts"] == self._facts else {}
            return {
                modality: size
                for modality, limit in limits.items()
                if type(size := sizes.get(modality)) is int and 1 <= size <= limit
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}

    def write(self, sizes: Mapping[str, int]) -> None:
        """Keeps sizes; replaces the file as a whole, and logs if that cannot be done."""
        content = json.dumps({"facts": self._facts, "max_batch_size": dict(sizes)}, indent=2)
        draft = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(content)
            draft.replace(self._path)  # whole or not at all, whoever else writes it
        except OSError as error:
            _log.warning("batch_sizes_not_saved", file=str(self._path), reason=str(error))
            with suppress(OSError):
                draft.unlink()


def cpu_model() -> str:
    """Returns the processor's name, as far as the system tells it."""
    with suppress(OSError):
        for line in _CPU_INFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
