"""Converted checkpoints in a folder: each is made once, in a process of its own.

To convert takes torch and several times the memory of the weights; both go when that process ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from alignserve_server.logs import get_logger
from alignserve_server.model.calibration import CalibrationImages
from alignserve_server.model.checkpoint import Checkpoint, CheckpointError
from alignserve_server.model.openvino_quiet import ov
from alignserve_server.model.runtime import Probe, Rescaling

_log = get_logger(__name__)

IMAGE, TEXT, FACTS, REFERENCE = "image.xml", "text.xml", "facts.json", "reference.npy"
INPUTS = "inputs.npz"  # for the process that converts

_CONVERSION = "alignserve_server.model.openvino_conversion"


def find_or_convert(
    checkpoint: Checkpoint,
    rescaling: Rescaling,
    probe: Probe,
    cache_folder: Path,
    calibration: CalibrationImages | None,
) -> Path:
    """Returns the folder of a conversion to float32, or with calibration images to int8.

    Raises:
        CheckpointError: Its weights cannot be served, or OpenVINO cannot convert them.
        ValueError: int8 has to be made, and nncf or readable images are missing.
    """
    dtype = "float32" if calibration is None else f"int8-{calibration.digest}"
    fingerprint = checkpoint.fingerprint(runtime=f"openvino-{ov.get_version()}", dtype=dtype)
    folder = cache_folder / "openvino" / fingerprint
    if calibration is not None:
        folder = _by_quantizer(folder)
    if folder.is_dir():
        return folder
    inputs: dict[str, Any] = {
        "scale": rescaling.scale,
        "offset": rescaling.offset,
        "pixels": probe.pixels,
        "input_ids": probe.input_ids,
        "attention_mask": probe.attention_mask,
    }
    if calibration is not None:
        inputs["calibration"] = calibration.pixels()
    return _converted(checkpoint, inputs, folder)


def _by_quantizer(folder: Path) -> Path:
    """Returns the folder inside for the version of nncf; or without nncf, one that was made before."""
    try:
        return folder / f"nncf-{version('nncf')}"
    except PackageNotFoundError:
        made = sorted(folder.glob("nncf-*"))
        if made:
            return made[-1]
    raise ValueError("int8 is made with nncf, which is not installed; pip install 'alignserve[int8]'")


def _converted(checkpoint: Checkpoint, inputs: dict[str, Any], folder: Path) -> Path:
    """Converts into the folder, or into a temporary one if that cannot be written; returns which."""
    _log.info("converting", model_id=checkpoint.model_id, runtime="openvino", cache_folder=str(folder.parent))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as error:
        _log.warning("cache_not_writable", cache_folder=str(folder.parent), reason=str(error))
        folder = draft = Path(tempfile.mkdtemp(prefix="alignserve-"))
    try:
        np.savez(draft / INPUTS, **inputs)
        _run_conversion(checkpoint, draft)
        (draft / INPUTS).unlink()
        if draft != folder:
            draft.rename(folder)  # whole or not at all, whoever else converts or is cut off
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same result
            raise
        shutil.rmtree(draft, ignore_errors=True)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder


def _run_conversion(checkpoint: Checkpoint, draft: Path) -> None:
    command = [sys.executable, "-m", _CONVERSION, str(checkpoint.folder.resolve()), str(draft.resolve())]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # a module is not looked for where the server started
    with subprocess.Popen(  # noqa: S603 — a module of this package
        command,
        env=environment,
        stdin=subprocess.PIPE,  # it ends when this closes
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None  # noqa: S101 — it is a pipe
        report = process.stderr.read().strip()
    if process.returncode:
        reason = report.rpartition("\n")[2] or f"its process ended with {process.returncode}"
        raise CheckpointError(
            f"openvino cannot convert {checkpoint.model_id} ({reason}); use --runtime torch"
        )
