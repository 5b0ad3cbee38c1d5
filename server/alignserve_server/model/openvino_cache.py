"""Converted checkpoints in a folder: each is made once, in a process of its own.

To convert takes torch and several times the memory of the weights; both go when that process ends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import tokenizers

from alignserve_server.logs import get_logger
from alignserve_server.model import probe
from alignserve_server.model.calibration import CalibrationImages
from alignserve_server.model.checkpoint import Checkpoint, CheckpointError, file_digest
from alignserve_server.model.openvino_quiet import ov
from alignserve_server.model.runtime import Rescaling

_log = get_logger(__name__)

IMAGE, TEXT = "image.xml", "text.xml"
QUANTIZER = "quantizer.txt"  # what made int8
INPUTS = "inputs.npz"  # for the process that converts
_DIGESTS = "digests.json"  # of all other files
_CONVERSION = "alignserve_server.model.openvino_conversion"


def find_or_convert(
    checkpoint: Checkpoint,
    rescaling: Rescaling,
    cache_folder: Path,
    calibration: CalibrationImages | None,
) -> Path:
    """Returns the folder of a conversion to float32, or with calibration images to int8.

    Raises:
        CheckpointError: Its weights or its tokenizer cannot be served, OpenVINO cannot convert it, or the
            conversion is damaged.
        ValueError: int8 has to be made, and nncf or readable images are missing.
    """
    dtype = "float32" if calibration is None else f"int8-{calibration.digest}"
    # Another tokenizers or Pillow may make other tokens or pixels, and the reference was made with them too.
    made_with = f"openvino-{ov.get_version()} tokenizers-{tokenizers.__version__} pillow-{PIL.__version__}"
    fingerprint = checkpoint.fingerprint(runtime=f"{made_with} probe-{probe.digest()} digests", dtype=dtype)
    folder = _by_makers(cache_folder / "openvino", fingerprint, has_quantizer=calibration is not None)
    if folder.is_dir():
        _check_undamaged(folder)
        return folder
    inputs: dict[str, Any] = {"scale": rescaling.scale, "offset": rescaling.offset}
    if calibration is not None:
        inputs["calibration"] = calibration.pixels()
    return _converted(checkpoint, inputs, folder)


def _check_undamaged(folder: Path) -> None:
    """Compares the files with their digests: the probe has a few of the words, and a disk can lose any."""
    try:
        digests = json.loads((folder / _DIGESTS).read_text())
        damaged = [name for name, digest in digests.items() if file_digest(folder / name).hex() != digest]
    except (OSError, ValueError, AttributeError) as error:
        damaged = [str(error)]
    if damaged:
        raise CheckpointError(
            f"the conversion in {folder} is damaged: {', '.join(damaged)}; delete the folder to convert again"
        )


def _write_digests(folder: Path) -> None:
    digests = {path.name: file_digest(path).hex() for path in sorted(folder.iterdir())}
    (folder / _DIGESTS).write_text(json.dumps(digests))


def _by_makers(cache: Path, fingerprint: str, *, has_quantizer: bool) -> Path:
    """Returns the folder for the versions of what converts; or where that is missing, one made before."""
    makers = {"transformers": _version("transformers")}
    if has_quantizer:
        makers["nncf"] = _version("nncf")
    name = "-".join([fingerprint, *(f"{maker}-{version or '*'}" for maker, version in makers.items())])
    if all(makers.values()):
        return cache / name
    made = sorted(cache.glob(name))
    if made:
        return made[-1]
    if makers["transformers"] is None:
        raise ValueError(
            "conversions are made with transformers and torch, and transformers is not installed"
        )
    raise ValueError("int8 is made with nncf, which is not installed; pip install 'alignserve[int8]'")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
        _write_digests(draft)
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
