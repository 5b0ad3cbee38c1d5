"""A prepared checkpoint: a folder with everything to serve it on a CPU, without torch and transformers.

prepared.json                   the checkpoint and its source, and the versions that prepared it
image.xml/.bin text.xml/.bin    the two networks, in OpenVINO's format
reference.json/.npz, probe/     the tokenizer, and transformers' results for the probe's texts and images
LICENSE* NOTICE* README.md      copied from the checkpoint
digests.json                    SHA-256 digests of all other files
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from alignserve_server.model.checkpoint import (
    EMBEDDED,
    Checkpoint,
    file_digest,
    locate_checkpoint,
    open_checkpoint,
)
from alignserve_server.model.checkpoint_files import (
    CheckpointError,
    Json,
    check_file,
    is_there,
    read_json,
    validated,
)
from alignserve_server.model.probe import REFERENCE_FILES
from alignserve_server.model.runtimes.runtime import DtypeName

IMAGE, TEXT = "image.xml", "text.xml"
IMAGE_WEIGHTS, TEXT_WEIGHTS = "image.bin", "text.bin"
FACTS = "prepared.json"
DIGESTS = "digests.json"  # of all other files; written last
SHIPPED = "prepared"  # subfolder in which a checkpoint in Hugging Face format may include its prepared form

_FORMAT = 1
_NEEDED = (FACTS, IMAGE, IMAGE_WEIGHTS, TEXT, TEXT_WEIGHTS, *REFERENCE_FILES)
_MAX_FILES = 10_000  # there are some thirty
_MAX_FAULTS = 3  # in a message
_LICENCES = ("LICENSE*", "NOTICE*", "README.md")
_CONTENTS = (FACTS, "image.*", "text.*", "reference.*", "probe", *_LICENCES, DIGESTS)


@dataclass(frozen=True, slots=True)
class PreparedCheckpoint:
    """A prepared checkpoint on disk, complete and undamaged."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    folder: Path
    model_id: Annotated[str, Field(min_length=1)]
    revision: str  # commit on the hub; empty for a folder
    image_processor: Json
    # By data type of the computation.
    fingerprints: Annotated[Mapping[DtypeName, str], Field(min_length=1)]
    weights: Literal["float32", "float16", "int8"]  # float16 and int8 are rounded
    made_with: Mapping[str, str]  # versions by package

    def fingerprint(self, dtype: DtypeName) -> str:
        """Returns the original checkpoint's fingerprint for OpenVINO and a data type."""
        return self.fingerprints[dtype]

    def copy_to(self, folder: Path) -> None:
        """Copies only the files that belong to it into an empty folder. Raises OSError."""
        for name in [*read_json(self.folder / DIGESTS), DIGESTS]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, folder / name)

    def save(self) -> None:
        """Writes prepared.json and digests.json; all other files must exist already.

        Raises:
            OSError: They cannot be written.
        """
        facts = {"format": _FORMAT, **asdict(self)}
        del facts["folder"]
        (self.folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        digests = {
            path.relative_to(self.folder).as_posix(): file_digest(path).hex()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != DIGESTS
        }
        (self.folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")


_PREPARED = TypeAdapter(PreparedCheckpoint)


def resolve(checkpoint: str = EMBEDDED, revision: str | None = None) -> Checkpoint | PreparedCheckpoint:
    """Finds a checkpoint of either kind, as `resolve_checkpoint` does for those in Hugging Face format.

    Raises:
        CheckpointError: It does not exist, cannot be downloaded, or cannot be served.
    """
    location = locate_checkpoint(checkpoint, revision)
    if is_prepared(location.folder):
        return open_prepared(location.folder)
    return open_checkpoint(location.folder, model_id=location.model_id, revision=location.revision)


def is_prepared(folder: Path) -> bool:
    """Returns whether a folder is a prepared checkpoint, damaged or not."""
    # Path.exists() raises if a folder cannot be searched; opening the checkpoint gives a better error.
    return os.path.lexists(folder / FACTS) or os.path.lexists(folder / IMAGE)


def other_files(folder: Path) -> list[Path]:
    """Returns the files in a folder that are not part of a prepared checkpoint, damaged or not."""
    return [path for path in folder.iterdir() if not any(fnmatchcase(path.name, name) for name in _CONTENTS)]


def open_prepared(folder: Path) -> PreparedCheckpoint:
    """Opens a prepared checkpoint and verifies the digest of each file.

    The probe covers only a few words, but a disk can corrupt any weight.

    Raises:
        CheckpointError: It is damaged, or from a later release.
    """
    if faults := _faults(folder):
        raise CheckpointError(
            f"the prepared checkpoint {folder} is damaged: {_listed(faults)}; "
            "prepare it again, or copy an undamaged one"
        )
    facts = dict(read_json(folder / FACTS))
    written_as = facts.pop("format", None)
    if written_as != _FORMAT:
        raise CheckpointError(
            f"{folder} was prepared in format {written_as!r}, but this release reads {_FORMAT}; "
            "prepare it again with this release"
        )
    return validated(_PREPARED, {**facts, "folder": folder}, folder / FACTS)


def is_undamaged(folder: Path) -> bool:
    """Returns whether a folder is an undamaged prepared checkpoint."""
    try:
        open_prepared(folder)
    except CheckpointError:
        return False
    return True


def copy_licences(source: Path, folder: Path) -> None:
    """Copies a checkpoint's licence files. Raises OSError."""
    for path in (path for pattern in _LICENCES for path in source.glob(pattern) if path.is_file()):
        shutil.copyfile(path, folder / path.name)


def _faults(folder: Path) -> list[str]:
    """Returns a description of each file that is missing or has changed."""
    if not is_there(folder / DIGESTS):
        return [f"{folder / DIGESTS} is missing"]
    try:
        digests = read_json(folder / DIGESTS)
    except CheckpointError as error:
        return [str(error)]
    if len(digests) > _MAX_FILES:
        return [f"{folder / DIGESTS} names {len(digests)} files"]
    expected = {**dict.fromkeys(_NEEDED, ""), **digests}
    return [fault for name, digest in expected.items() if (fault := _fault(folder, name, digest))]


def _fault(folder: Path, name: str, digest: object) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:  # such as /proc/kcore, which is endless
        return f"{folder / DIGESTS} names {name[:80]!r}, which is outside the folder"
    if not is_there(folder / name):
        return f"{folder / name} is missing"
    try:
        check_file(folder / name)
        is_whole = file_digest(folder / name).hex() == digest
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{folder / name} cannot be read: {error.strerror}"
    return None if is_whole else f"{folder / name} does not match its digest"


def _listed(faults: list[str]) -> str:
    more = len(faults) - _MAX_FAULTS
    return "; ".join(faults[:_MAX_FAULTS]) + (f"; and {more} more" if more > 0 else "")
