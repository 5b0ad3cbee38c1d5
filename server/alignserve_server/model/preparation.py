"""Prepares checkpoints, each in a separate process.

Preparation needs torch, transformers and several times the memory of the weights, all of which is released
when the process ends.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from alignserve_server.model.agreement import check_agreement
from alignserve_server.model.checkpoint import Checkpoint, CheckpointError
from alignserve_server.model.configuration import check_configuration
from alignserve_server.model.prepared import (
    SHIPPED,
    PreparedCheckpoint,
    copy_licences,
    is_prepared,
    open_prepared,
)
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.model.runtimes.calibration import CalibrationImages
from alignserve_server.model.runtimes.runtime import DtypeName
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

Weights: TypeAlias = Literal["float32", "float16"]

INPUTS = "inputs.npz"  # for the conversion process
MADE_WITH = ("openvino", "torch", "transformers", "tokenizers", "pillow")
QUANTIZER = "nncf"
_WHY_TORCH = "to prepare a checkpoint (an already prepared checkpoint needs neither)"
_LITTLE_MEGABYTES = 100
_CONVERSION = "alignserve_server.model.runtimes.openvino_conversion"


def prepare(
    checkpoint: Checkpoint,
    draft: Path,
    *,
    calibration: CalibrationImages | None = None,
    weights: Weights = "float32",
) -> PreparedCheckpoint:
    """Prepares a checkpoint into an empty folder; with calibration images, in int8.

    Args:
        checkpoint: In Hugging Face format.
        draft: The folder to write.
        calibration: Images like those that callers send.
        weights: float16 halves the folder's size and rounds the weights.

    Raises:
        CheckpointError: Its weights or its processors cannot be served, or OpenVINO cannot convert it.
        ValueError: A package is not installed, or no calibration image can be read.
        OSError: The folder cannot be written.
    """
    check_installed(["torch", "transformers"], extra="torch", why=_WHY_TORCH)
    check_configuration(checkpoint.config)
    check_agreement(checkpoint)
    images = ImagePreprocessor(checkpoint.image_processor, ImageDecoder(max_bytes=1, max_pixels=1))
    inputs: dict[str, Any] = {"scale": images.scale, "offset": images.offset, "weights": weights}
    if calibration is not None:
        _check_quantizer()
        inputs["calibration"] = calibration.pixels()
    np.savez(draft / INPUTS, **inputs)
    _run_conversion(checkpoint, draft)
    (draft / INPUTS).unlink()
    copy_licences(checkpoint.folder, draft)
    prepared = PreparedCheckpoint(
        folder=draft,
        model_id=checkpoint.model_id,
        revision=checkpoint.revision,
        image_processor=checkpoint.image_processor,
        fingerprints=fingerprints(checkpoint, calibration, weights),
        weights=weights if calibration is None else "int8",
        made_with=_versions([*MADE_WITH, QUANTIZER] if calibration is not None else MADE_WITH),
    )
    prepared.save()
    return prepared


def shipped_form(checkpoint: Checkpoint) -> PreparedCheckpoint | None:
    """Returns the prepared float32 form that a checkpoint includes; None if it has none.

    Raises:
        CheckpointError: It is damaged, or belongs to other files than the checkpoint's.
    """
    folder = checkpoint.folder / SHIPPED
    if not is_prepared(folder):
        return None
    prepared = open_prepared(folder)
    if prepared.fingerprints != fingerprints(checkpoint, None, "float32"):
        raise CheckpointError(
            f"{folder} was prepared from other files: the weights, tokenizer, config.json or image processor "
            f"of {checkpoint.folder} have changed since; copy both again, or delete {folder}"
        )
    return replace(prepared, model_id=checkpoint.model_id, revision=checkpoint.revision)


def undamaged(find: Callable[[], PreparedCheckpoint | None]) -> PreparedCheckpoint | None:
    """Returns the prepared checkpoint that is found; if it is damaged, logs why and returns None."""
    try:
        return find()
    except CheckpointError as error:
        _log.warning("conversion_damaged", reason=str(error), advice="converting it again")
        return None


def fingerprints(
    checkpoint: Checkpoint, calibration: CalibrationImages | None, weights: Weights
) -> dict[DtypeName, str]:
    """Returns a fingerprint for each data type that the same graphs support.

    Raises:
        ValueError: nncf, whose version is part of the int8 fingerprint, is not installed.
    """
    if calibration is not None:
        _check_quantizer()
        made: dict[DtypeName, str] = {"int8": f"int8{calibration.digest}-{QUANTIZER}-{version(QUANTIZER)}"}
    else:
        rounded = "" if weights == "float32" else f"-weights-{weights}"
        made = {"float32": f"float32{rounded}", "bfloat16": f"bfloat16{rounded}"}
    return {dtype: checkpoint.fingerprint(runtime="openvino", dtype=name) for dtype, name in made.items()}


def check_installed(packages: list[str], *, extra: str, why: str) -> None:
    """Raises ValueError if a package is missing, and says what to install."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"not installed: {', '.join(missing)}, needed {why}; pip install 'alignserve[server,{extra}]'"
        )


def _check_quantizer() -> None:
    """Raises ValueError if nncf is missing; also names torch if that is missing, since nncf needs it."""
    has_torch = importlib.util.find_spec("torch") is not None
    check_installed([QUANTIZER], extra="int8" if has_torch else "torch,int8", why="to make int8")


def _versions(packages: list[str] | tuple[str, ...]) -> dict[str, str]:
    return {package: version(package) for package in packages}


def _run_conversion(checkpoint: Checkpoint, draft: Path) -> None:
    command = [sys.executable, "-m", _CONVERSION, str(checkpoint.folder.resolve()), str(draft.resolve())]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # do not import modules from the working folder
    with subprocess.Popen(  # noqa: S603 — a module of this package
        command,
        env=environment,
        stdin=subprocess.PIPE,  # the process ends when this closes
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None  # noqa: S101 — it is a pipe
        report = process.stderr.read().strip()
    if process.returncode:
        reason = report.rpartition("\n")[2] or f"its process exited with {process.returncode}"
        free_megabytes = shutil.disk_usage(draft).free >> 20
        if free_megabytes < _LITTLE_MEGABYTES:  # OpenVINO does not say why it could not write a graph
            reason = f"{reason}; {draft.parent} has {free_megabytes} MB left"
        raise CheckpointError(
            f"openvino cannot convert {checkpoint.model_id} ({reason}); use --runtime torch"
        )
