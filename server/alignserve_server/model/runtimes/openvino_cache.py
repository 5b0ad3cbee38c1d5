"""Prepared checkpoints in a cache folder: each is created once, and again if it is damaged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import PIL
import tokenizers

from alignserve_server.model import probe
from alignserve_server.model.checkpoint import Checkpoint, CheckpointError
from alignserve_server.model.drafts import draft_folder, install
from alignserve_server.model.preparation import QUANTIZER, prepare, shipped_form, undamaged
from alignserve_server.model.prepared import PreparedCheckpoint, is_undamaged, open_prepared
from alignserve_server.model.runtimes.calibration import CalibrationImages
from alignserve_server.model.runtimes.openvino_quiet import ov
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)


@contextmanager
def prepared_form(
    checkpoint: Checkpoint, cache_dir: Path, calibration: CalibrationImages | None
) -> Iterator[PreparedCheckpoint]:
    """Yields the prepared form that a checkpoint includes, or that of the cache, created if necessary.

    Args:
        checkpoint: In Hugging Face format.
        cache_dir: If it is not writable, a temporary folder is used and finally removed.
        calibration: None for float32; images for int8.

    Raises:
        CheckpointError: Its weights or its processors cannot be served, or OpenVINO cannot convert it.
        ValueError: It must be created, but packages or readable images are missing.
    """
    found = undamaged(lambda: shipped_form(checkpoint)) if calibration is None else None
    if found is not None:
        yield found
        return
    folder = _cached(checkpoint, cache_dir / "openvino", calibration)
    if os.path.isdir(folder):  # noqa: PTH112 — Path.is_dir() raises without permission
        found = undamaged(lambda: open_prepared(folder))
    if found is not None:
        yield found
        return
    with _made(checkpoint, folder, calibration) as prepared:
        yield prepared


def _cached(checkpoint: Checkpoint, cache: Path, calibration: CalibrationImages | None) -> Path:
    """Returns the folder for these package versions; if they are not installed, that of an earlier run."""
    dtype = "float32" if calibration is None else f"int8-{calibration.digest}"
    # Other versions of tokenizers or Pillow may give other tokens or pixels, and the reference uses both.
    made_with = f"openvino-{ov.get_version()} tokenizers-{tokenizers.__version__} pillow-{PIL.__version__}"
    made_of = f"{made_with} probe-{probe.digest()} prepared"
    fingerprint = checkpoint.fingerprint(runtime=made_of, dtype=dtype)
    makers = ["transformers", *([] if calibration is None else [QUANTIZER])]
    versions = {maker: _version(maker) for maker in makers}
    name = "-".join([fingerprint, *(f"{maker}-{version or '*'}" for maker, version in versions.items())])
    if all(versions.values()):
        return cache / name
    made: list[Path] = []
    with suppress(OSError):  # without permission to search it, writing will report the error
        made = sorted(cache.glob(name))
    return made[-1] if made else cache / name.replace("*", "none")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def _made(
    checkpoint: Checkpoint, folder: Path, calibration: CalibrationImages | None
) -> Iterator[PreparedCheckpoint]:
    _log.info("converting", model_id=checkpoint.model_id, runtime="openvino", cache_dir=str(folder.parent))
    with ExitStack() as stack:
        try:
            draft, is_kept = _draft(stack, folder.parent)
            prepared = prepare(checkpoint, draft, calibration=calibration)
            if is_kept:
                install(draft, folder, is_usable=is_undamaged)
                prepared = open_prepared(folder)
        except OSError as error:
            raise CheckpointError(
                f"the conversion of {checkpoint.model_id} cannot be written: {error}; free some space there, "
                "or set --cache-dir to another folder"
            ) from error
        yield prepared


def _draft(stack: ExitStack, cache: Path) -> tuple[Path, bool]:
    """Returns a writable folder, and whether it can be kept. Raises CheckpointError if there is none."""
    try:
        return stack.enter_context(draft_folder(cache)), True
    except OSError as error:
        _log.warning("cache_not_writable", cache_dir=str(cache), reason=str(error))
    try:
        return stack.enter_context(draft_folder(Path(tempfile.gettempdir()))), False
    except OSError as error:
        raise CheckpointError(
            f"a conversion can be written neither to {cache} nor to a temporary folder: {error}; set "
            "--cache-dir to a writable folder"
        ) from error
