"""The forwards of the image tower to choose from. Their modules, which need Triton, are imported on use."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeAlias

import torch

from alignserve_server.model.runtimes.kernels.unavailable import Unavailable
from alignserve_server.model.runtimes.runtime import KernelsName
from alignserve_server.model.runtimes.towers import ImageForward, Towers

Makers: TypeAlias = Mapping[KernelsName, Callable[[Towers], ImageForward]]

_CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
_MIN_CAPABILITY = (8, 0)  # Triton's: for older GPUs it compiles for minutes, if at all


def keep_compiled(cache_dir: Path | None) -> None:
    """Has Triton and Inductor keep what they compile in a directory, unless theirs is set already.

    Raises:
        Unavailable: It is not writable. Every start would compile again, and none would know which kernels
            have made the device fail.
    """
    if cache_dir is None:
        return
    for variable, name in _CACHES.items():
        folder = cache_dir / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise Unavailable(f"they need a writable cache_dir: {error}") from error
        os.environ.setdefault(variable, str(folder))


def _epilogues(towers: Towers) -> ImageForward:
    _check_triton()
    _check_capability(towers.scale.device)
    from alignserve_server.model.runtimes.kernels.epilogues import EpilogueForward

    return EpilogueForward(towers)


def _fused(towers: Towers) -> ImageForward:
    _check_triton()
    _check_capability(towers.scale.device)
    from alignserve_server.model.runtimes.kernels.fused import FusedForward

    return FusedForward(towers)


def _compiled(towers: Towers) -> ImageForward:
    _check_triton()
    from alignserve_server.model.runtimes.kernels.compiled import CompiledForward

    return CompiledForward(towers)


def _check_triton() -> None:
    """Raises Unavailable if Triton cannot compile: it builds what launches its kernels with a C compiler."""
    if importlib.util.find_spec("triton") is None:
        raise Unavailable("the package triton, a part of torch for CUDA on Linux, is not installed")
    if not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))):
        raise Unavailable("a C compiler is missing; install gcc")


def _check_capability(device: torch.device) -> None:
    """Raises Unavailable if Triton does not support the GPU; on a CPU, its interpreter runs."""
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        least, has = (".".join(map(str, one)) for one in (_MIN_CAPABILITY, capability))
        raise Unavailable(f"they need a GPU of compute capability {least} or later; this one has {has}")


MAKERS: Makers = {
    "epilogues": _epilogues,
    "fused": _fused,
    "compiled": _compiled,
}
AUTOMATIC: tuple[KernelsName, ...] = ("epilogues", "fused")  # they compile in seconds
