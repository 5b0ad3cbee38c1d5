"""Where the model comes from: a name, folder or hub id becomes a checked checkpoint on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

EMBEDDED = "mini"  # ships inside this package and needs no network

Json: TypeAlias = Mapping[str, Any]  # Any: a file of a stranger's; each reader checks its own keys

_CHECKPOINTS = Path(__file__).parent / "checkpoints"
# Never pickles, which run code when they are loaded; the second line is of prepared ones.
_DOWNLOADED = [
    *("*.json", "*.txt", "*.safetensors"),
    *("image.xml", "image.bin", "text.xml", "text.bin", "reference.npz", "probe/*"),
    *("LICENSE*", "NOTICE*", "README.md"),
]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"  # of weights in several files
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.json", "vocab.txt")
_TOKENIZER_ADDITIONS = (
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.*.json",
)  # read if they exist
_PROVENANCE = (
    "_name_or_path",
    "name_or_path",
    "transformers_version",
)  # who wrote a file


class CheckpointError(Exception):
    """The checkpoint cannot be served; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a checkpoint is, and what to call it."""

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
        """Digests all that decides an embedding, in 32 hexadecimal digits.

        Paths, timestamps and the layout of JSON make no difference.
        """
        digest = hashlib.sha256()
        for part in (self.config, self.image_processor, self.tokenizer_config):
            _add(digest, json.dumps(_without_provenance(part), sort_keys=True).encode())
        files = _tokenizer_files(self.folder) + _tokenizer_additions(self.folder) + _weight_files(self.folder)
        for path in files:
            status = path.stat()
            _add(digest, _file_digest(path, status.st_size, status.st_mtime_ns))
        _add(digest, runtime.encode())
        _add(digest, dtype.encode())
        return digest.hexdigest()[:32]


def resolve_checkpoint(checkpoint: str = EMBEDDED, revision: str | None = None) -> Checkpoint:
    """Finds a checkpoint in Hugging Face format, downloading it if it is not in the local cache.

    Raises:
        CheckpointError: See `locate_checkpoint`; or it cannot be served.
    """
    location = locate_checkpoint(checkpoint, revision)
    return open_checkpoint(location.folder, model_id=location.model_id, revision=location.revision)


def locate_checkpoint(checkpoint: str = EMBEDDED, revision: str | None = None) -> Location:
    """Finds the folder of a checkpoint, downloading it if it is on the hub and not in the local cache.

    Args:
        checkpoint: `mini`, a folder (`./mini` where the name is taken), or a hub id such as
            `kakaobrain/align-base`.
        revision: Branch, tag or commit of a hub id.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be downloaded.
    """
    folder = Path(checkpoint).expanduser()
    if checkpoint == EMBEDDED:
        return Location(_CHECKPOINTS / EMBEDDED, model_id=EMBEDDED)
    if folder.is_dir():
        return Location(folder)
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
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "align":
        raise CheckpointError(f"{folder} holds a model of type {config.get('model_type')!r}, not 'align'")
    _check_weights(folder)
    if not _tokenizer_files(folder):
        raise CheckpointError(f"{folder} has no tokenizer: neither {' nor '.join(_TOKENIZERS)}")
    tokenizer_config = folder / "tokenizer_config.json"
    return Checkpoint(
        folder=folder,
        model_id=model_id or folder.resolve().name,
        revision=revision,
        config=config,
        image_processor=_read_image_processor(folder),
        tokenizer_config=_read_json(tokenizer_config) if tokenizer_config.is_file() else {},
    )


def file_digest(path: Path) -> bytes:
    """Digests what is in a file, however large, with SHA-256."""
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.digest()


def _download(hub_id: str, revision: str | None) -> Path:
    import huggingface_hub  # half a second of imports that folders do not need
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=_DOWNLOADED))
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{hub_id} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id} is neither a folder nor on the hub, or it is private; check the name, or set HF_TOKEN"
        ) from error
    except (OSError, ValueError) as error:  # everything of the hub and of its HTTP client derives from these
        raise CheckpointError(
            f"{hub_id} is not in the local cache and the hub cannot be reached ({type(error).__name__}); "
            "go online once, set HF_ENDPOINT to a mirror, or give a folder"
        ) from error


def _read_json(path: Path) -> Json:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; save_pretrained writes a complete folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _read_image_processor(folder: Path) -> Json:
    # transformers 5 writes processor_config.json, which nests what 4 wrote to preprocessor_config.json
    nested = folder / "processor_config.json"
    if nested.is_file():
        processor = _read_json(nested).get("image_processor")
        if isinstance(processor, dict):
            return processor
    return _read_json(folder / "preprocessor_config.json")


def _check_weights(folder: Path) -> None:
    missing = [path.name for path in _weight_files(folder) if not path.is_file()]
    if not missing:
        return
    if any((folder / name).exists() for name in _PICKLES):
        raise CheckpointError(
            f"{folder} has its weights as a pickle, which runs code when it is loaded; convert it once with "
            "AlignModel.from_pretrained(folder).save_pretrained(folder)"
        )
    raise CheckpointError(f"{folder} lacks weights: {', '.join(missing)}")


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).is_file() or not (folder / _INDEX).is_file():
        return [folder / _WEIGHTS]
    weight_map = _read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / _INDEX} names no weights")
    return [folder / Path(name).name for name in sorted(set(weight_map.values()))]


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in _TOKENIZERS if (folder / name).is_file()][:1]


def _tokenizer_additions(folder: Path) -> list[Path]:
    return sorted(path for pattern in _TOKENIZER_ADDITIONS for path in folder.glob(pattern))


def _without_provenance(config: Json) -> dict[str, Any]:  # Any: see Json
    return {
        key: _without_provenance(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _PROVENANCE
    }


def _add(digest: hashlib._Hash, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little"))  # lengths keep neighbouring parts apart
    digest.update(part)


@lru_cache(maxsize=64)  # weights are large, and fingerprints of several runtimes are asked for
def _file_digest(path: Path, _size: int, _modified: int) -> bytes:
    return file_digest(path)


def _chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk
