"""Resolves a name, folder or hub id to a validated checkpoint on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignserve_server.model.checkpoint_files import (
    CheckpointError,
    Json,
    StoredWeight,
    is_there,
    parse_tokenizer,
    read_json,
    read_text,
    stored_weights,
)

__all__ = [
    "EMBEDDED",
    "Checkpoint",
    "CheckpointError",
    "Json",
    "Location",
    "checkpoint_faults",
    "file_digest",
    "locate_checkpoint",
    "open_checkpoint",
    "resolve_checkpoint",
]

EMBEDDED = "mini"  # included in this package; needs no network

_CHECKPOINTS = Path(__file__).parent / "checkpoints"
# Never pickles, which run code when they are loaded. The second and third lines are for prepared checkpoints.
_DOWNLOADED = [
    *("*.json", "*.txt", "*.safetensors"),
    *("image.xml", "image.bin", "text.xml", "text.bin", "reference.npz"),
    *("probe/*", "prepared/*", "LICENSE*", "NOTICE*", "README.md"),
]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_FILE_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"  # for weights in several files
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.json", "vocab.txt")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_ADDITIONS = (
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.*.json",
)  # read if they exist
_HUB_BLOB = re.compile(r"[0-9a-f]{64}")  # the name of a large file in the hub's cache is its SHA-256
_PROVENANCE = (
    "_name_or_path",
    "name_or_path",
    "transformers_version",
)  # provenance: which program wrote a file


@dataclass(frozen=True, slots=True)
class Location:
    """Where a checkpoint is, and its name."""

    folder: Path
    model_id: str | None = None  # the folder's name
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An ALIGN checkpoint in Hugging Face format, on disk and complete."""

    folder: Path
    model_id: str
    revision: str  # commit on the hub; empty for a folder
    config: Json
    image_processor: Json
    tokenizer_config: Json

    def fingerprint(self, *, runtime: str, dtype: str) -> str:
        """Returns a digest of everything that determines an embedding, as 32 hexadecimal digits.

        It does not depend on paths, timestamps or the formatting of JSON.
        """
        digest = hashlib.sha256()
        for part in (self.config, self.image_processor, self.tokenizer_config):
            _add(digest, json.dumps(_without_provenance(part), sort_keys=True).encode())
        files = _tokenizer_files(self.folder) + _tokenizer_additions(self.folder) + _weight_files(self.folder)
        for path in files:
            _add(digest, _known_digest(path))
        _add(digest, runtime.encode())
        _add(digest, dtype.encode())
        return digest.hexdigest()[:32]

    def files(self) -> list[Path]:
        """Returns the files that determine an embedding, the weights last."""
        names = ("config.json", *_PROCESSORS, "tokenizer_config.json", *_TOKENIZERS)
        read = [self.folder / name for name in names if is_there(self.folder / name)]
        return list(dict.fromkeys([*read, *_tokenizer_additions(self.folder), *_weight_files(self.folder)]))

    def weights(self) -> Mapping[str, StoredWeight]:
        """Returns the weights by name, without reading their values."""
        return {
            name: weight
            for path in _weight_files(self.folder)
            for name, weight in stored_weights(path).items()
        }

    def weight_digests(self) -> dict[str, str]:
        """Returns the SHA-256 of each file of weights, in hexadecimal, by its name."""
        return {path.name: _known_digest(path).hex() for path in _weight_files(self.folder)}

    def tokenizer_file(self) -> Path:
        """Returns the file with the vocabulary: tokenizer.json, or vocab.txt if there is no such file."""
        return _tokenizer_files(self.folder)[0]


def resolve_checkpoint(checkpoint: str = EMBEDDED, revision: str | None = None) -> Checkpoint:
    """Finds a checkpoint in Hugging Face format, downloading it if it is not in the local cache.

    Raises:
        CheckpointError: As for `locate_checkpoint`, or the checkpoint cannot be served.
    """
    location = locate_checkpoint(checkpoint, revision)
    return open_checkpoint(location.folder, model_id=location.model_id, revision=location.revision)


def locate_checkpoint(checkpoint: str = EMBEDDED, revision: str | None = None) -> Location:
    """Finds the folder of a checkpoint, downloading it if it is on the hub and not in the local cache.

    Args:
        checkpoint: `mini`, a folder (`./mini` for a folder of that name), or a hub id such as
            `kakaobrain/align-base`.
        revision: Branch, tag or commit of a hub id.

    Raises:
        CheckpointError: The checkpoint does not exist, or cannot be downloaded.
    """
    if checkpoint == EMBEDDED:
        return Location(_CHECKPOINTS / EMBEDDED, model_id=EMBEDDED)
    if _is_folder(checkpoint):
        return Location(Path(checkpoint).expanduser())
    if not _HUB_ID.fullmatch(checkpoint) or checkpoint.startswith("."):
        raise CheckpointError(
            f"checkpoint {checkpoint!r} is neither a folder nor a hub id such as organization/name"
        )
    snapshot = _download(checkpoint, revision)
    return Location(snapshot, model_id=checkpoint, revision=snapshot.name)


def open_checkpoint(folder: Path, *, model_id: str | None = None, revision: str = "") -> Checkpoint:
    """Checks a folder and reads its configuration; `model_id` defaults to the folder's name.

    Raises:
        CheckpointError: It is not an ALIGN checkpoint, or a file is missing or broken.
    """
    config = _read_config(folder)
    _check_weights(folder)
    _check_tokenizer(folder)
    return Checkpoint(
        folder=folder,
        model_id=model_id or folder.resolve().name or str(folder),
        revision=revision,
        config=config,
        image_processor=_read_image_processor(folder),
        tokenizer_config=_read_tokenizer_config(folder),
    )


def checkpoint_faults(folder: Path) -> list[str]:
    """Returns what is wrong with each kind of file; `open_checkpoint` raises the first of these errors."""
    checks: tuple[Callable[[Path], object], ...] = (
        _read_config,
        _check_weights,
        _check_tokenizer,
        _read_image_processor,
        _read_tokenizer_config,
    )
    faults: dict[str, None] = {}
    for check in checks:
        try:
            check(folder)
        except CheckpointError as error:
            faults[str(error)] = None
    return list(faults)


def file_digest(path: Path) -> bytes:
    """Returns the SHA-256 digest of a file of any size."""
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.digest()


def _is_folder(checkpoint: str) -> bool:
    """Returns whether a name is that of a folder; raises CheckpointError if it is that of a file."""
    try:
        path = Path(checkpoint).expanduser()
        if path.is_dir():
            return True
        is_file = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~ of an unknown user
        raise CheckpointError(f"checkpoint {checkpoint[:200]!r} cannot be found: {error}") from error
    if is_file:
        raise CheckpointError(
            f"checkpoint {checkpoint!r} is a file; give the folder that contains config.json"
        )
    return False


def _download(hub_id: str, revision: str | None) -> Path:
    import huggingface_hub  # half a second of imports that folders do not need
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=_DOWNLOADED))
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{hub_id} has no revision {revision!r} on the hub") from error
    except (OSError, ValueError, RuntimeError) as error:  # whatever the hub and its HTTP client raise
        raise CheckpointError(f"{hub_id} cannot be loaded: {_hub_refusal(hub_id, error)}") from error


def _hub_refusal(hub_id: str, error: BaseException) -> str:
    """Returns why a download failed and what to do, according to the hub's response, if there was one."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if HF_HUB_OFFLINE:
        return (
            "it is not in the local cache, and HF_HUB_OFFLINE is set, so it is not downloaded; unset it "
            "once, or give a folder"
        )
    errors = list(_chain(error))
    status = next((code for one in errors if (code := _http_status(one)) is not None), None)
    if any(isinstance(one, GatedRepoError) for one in errors):
        return (
            f"it is gated; request access at https://huggingface.co/{hub_id} and set HF_TOKEN to a token of "
            "the account that has it"
        )
    if any(isinstance(one, RepositoryNotFoundError) for one in errors):
        return (
            "it is neither a folder nor on the hub, or it is private, or the hub rejects the token "
            f"(HTTP {status}); check the name, and set HF_TOKEN to a valid token with access"
        )
    if status in (401, 403):
        return f"the hub refuses access (HTTP {status}); set HF_TOKEN to a valid token that can read {hub_id}"
    if status is not None:
        return f"it is not in the local cache, and the hub answers HTTP {status}; try again later"
    return (
        f"it is not in the local cache, and the hub cannot be reached ({type(errors[-1]).__name__}); go "
        "online once, set HF_ENDPOINT to a mirror, or give a folder"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes: the hub's client wraps the hub's response in another error."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _http_status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _read_config(folder: Path) -> Json:
    config = read_json(folder / "config.json")
    if config.get("model_type") != "align":
        raise CheckpointError(f"{folder} has a model of type {config.get('model_type')!r}, not 'align'")
    return config


def _read_tokenizer_config(folder: Path) -> Json:
    path = folder / "tokenizer_config.json"
    return read_json(path) if is_there(path) else {}


def _read_image_processor(folder: Path) -> Json:
    # transformers 5 writes processor_config.json, which nests transformers 4's preprocessor_config.json
    nested, plain = (folder / name for name in _PROCESSORS)
    if is_there(nested):
        processor = read_json(nested).get("image_processor")
        if isinstance(processor, dict):
            return processor
    return read_json(plain)


def _check_weights(folder: Path) -> None:
    files = _weight_files(folder)
    missing = [path.name for path in files if not is_there(path)]
    if missing and any((folder / name).exists() for name in _PICKLES):
        raise CheckpointError(
            f"{folder} has its weights in a pickle, which runs code when it is loaded; convert it once with "
            "AlignModel.from_pretrained(folder).save_pretrained(folder)"
        )
    if missing:
        raise CheckpointError(f"{folder} lacks weights: {', '.join(missing)}")
    for path in files:
        stored_weights(path)
        _check_blob(path)


def _check_blob(path: Path) -> None:
    """Compares weights from the hub with the digest that is their name in the hub's cache."""
    blob = path.resolve()
    if not _HUB_BLOB.fullmatch(blob.name):
        return
    digest = _known_digest(path).hex()
    if digest != blob.name:
        raise CheckpointError(
            f"{path} has changed since it was downloaded: its SHA-256 is {digest}, not {blob.name}; delete "
            f"{blob} and download it again"
        )


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if is_there(folder / _WEIGHTS) or not is_there(index):
        return [folder / _WEIGHTS]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} names no weights")
    for weight, name in weight_map.items():
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise CheckpointError(
                f"{index} has the weight {weight!r} in {name!r}, which is not a file in the same folder"
            )
    return [folder / name for name in sorted(set(weight_map.values()))]


def _check_tokenizer(folder: Path) -> None:
    files = _tokenizer_files(folder)
    if not files:
        raise CheckpointError(f"{folder} has no tokenizer: neither {' nor '.join(_TOKENIZERS)}")
    for path in (*files, *_tokenizer_additions(folder)):
        if path.suffix == ".json":
            read_json(path)
    vocabulary = folder / _TOKENIZERS[1]
    if is_there(vocabulary):  # transformers reads it even if there is a tokenizer.json
        read_text(vocabulary)
    if files[0].suffix == ".json":
        parse_tokenizer(read_text(files[0]), files[0])


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in _TOKENIZERS if is_there(folder / name)][:1]


def _tokenizer_additions(folder: Path) -> list[Path]:
    return sorted(path for pattern in _TOKENIZER_ADDITIONS for path in folder.glob(pattern))


def _without_provenance(config: Json) -> dict[str, Any]:  # Any: see Json
    return {
        key: _without_provenance(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _PROVENANCE
    }


def _add(digest: hashlib._Hash, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little"))  # lengths separate adjacent parts
    digest.update(part)


def _known_digest(path: Path) -> bytes:
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)  # weights are large, and several runtimes need fingerprints
def _file_digest(path: Path, _size: int, _modified: int) -> bytes:
    return file_digest(path)


def _chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk
