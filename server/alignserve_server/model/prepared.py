"""A prepared checkpoint: a folder with all that serving on a CPU takes, without torch and transformers.

prepared.json                   what was prepared, of what, with what
image.xml/.bin text.xml/.bin    the two networks, as OpenVINO reads them
reference.json/.npz, probe/     the tokenizer, and what transformers makes of texts and image files
LICENSE* NOTICE* README.md      as they came with the checkpoint
digests.json                    SHA-256 of all other files
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from alignserve_server.model.checkpoint import (
    EMBEDDED,
    Checkpoint,
    CheckpointError,
    Json,
    file_digest,
    locate_checkpoint,
    open_checkpoint,
)
from alignserve_server.model.runtime import DtypeName

IMAGE, TEXT = "image.xml", "text.xml"
DIGESTS = "digests.json"  # of all other files; written last
SHIPPED = "prepared"  # where a checkpoint in Hugging Face format may have its prepared form

_FACTS = "prepared.json"
_FORMAT = 1
_MOST_NAMES = 3  # of damaged files in a message
_LICENCES = ("LICENSE*", "NOTICE*", "README.md")


@dataclass(frozen=True, slots=True)
class PreparedCheckpoint:
    """A prepared checkpoint on disk, complete and undamaged."""

    folder: Path
    model_id: str
    revision: str  # commit on the hub; empty for a folder
    image_processor: Json
    fingerprints: Mapping[DtypeName, str]  # for each data type that it can be computed in
    weights: str  # float32; or float16 or int8, which have rounded them
    made_with: Mapping[str, str]  # versions by package

    def fingerprint(self, dtype: DtypeName) -> str:
        """Returns what `Checkpoint.fingerprint` of the original returns for OpenVINO and a data type."""
        return self.fingerprints[dtype]

    def save(self) -> None:
        """Writes facts and digests; the other files are there.

        Raises:
            OSError: They cannot be written.
        """
        facts = {"format": _FORMAT, **asdict(self)}
        del facts["folder"]
        (self.folder / _FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        digests = {
            path.relative_to(self.folder).as_posix(): file_digest(path).hex()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != DIGESTS
        }
        (self.folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")


def resolve(checkpoint: str = EMBEDDED, revision: str | None = None) -> Checkpoint | PreparedCheckpoint:
    """Finds a checkpoint of either kind, as `resolve_checkpoint` finds those in Hugging Face format.

    Raises:
        CheckpointError: There is none, it cannot be downloaded, or it cannot be served.
    """
    location = locate_checkpoint(checkpoint, revision)
    if is_prepared(location.folder):
        return open_prepared(location.folder)
    return open_checkpoint(location.folder, model_id=location.model_id, revision=location.revision)


def is_prepared(folder: Path) -> bool:
    """Says whether a folder is meant to be a prepared checkpoint, damaged or not."""
    return (folder / _FACTS).exists() or (folder / IMAGE).exists()


def open_prepared(folder: Path) -> PreparedCheckpoint:
    """Opens a prepared checkpoint; each file is compared with its digest.

    The probe has a few of the words, and a disk can lose any.

    Raises:
        CheckpointError: It is damaged, or of a later release.
    """
    damaged = _damaged_files(folder)
    if damaged:
        raise CheckpointError(
            f"the prepared checkpoint {folder} is damaged: {_listed(damaged)}; "
            "prepare it again, or copy it again from where it is whole"
        )
    try:
        facts = json.loads((folder / _FACTS).read_bytes())
        written_as = facts.pop("format")
        if written_as == _FORMAT:
            return PreparedCheckpoint(folder=folder, **facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / _FACTS} cannot be read: {type(error).__name__}: {error}") from error
    raise CheckpointError(
        f"{folder} was prepared in format {written_as!r}, and this release reads {_FORMAT}; "
        "prepare it again with this release"
    )


def is_undamaged(folder: Path) -> bool:
    """Says whether a folder is a prepared checkpoint that can be opened."""
    try:
        open_prepared(folder)
    except CheckpointError:
        return False
    return True


def copy_licences(source: Path, folder: Path) -> None:
    """Copies what a checkpoint says about its licence. Raises OSError."""
    for path in (path for pattern in _LICENCES for path in source.glob(pattern) if path.is_file()):
        shutil.copyfile(path, folder / path.name)


def _damaged_files(folder: Path) -> list[str]:
    """Returns the files that are missing or not what they were."""
    try:
        digests = dict(json.loads((folder / DIGESTS).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        return [f"{DIGESTS} ({type(error).__name__})"]
    missing = [name for name in (_FACTS, IMAGE, TEXT) if name not in digests]
    return missing + [name for name, digest in digests.items() if not _is_whole(folder / name, digest)]


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return path.is_file() and file_digest(path).hex() == digest
    except OSError:
        return False
