"""The forwards of the image tower to choose from. Their modules, which need Triton, are imported on use."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from alignserve_server.model.runtimes.kernels.unavailable import Unavailable
from alignserve_server.model.runtimes.runtime import KernelsName
from alignserve_server.model.runtimes.towers import ImageForward, Towers

Makers: TypeAlias = Mapping[KernelsName, Callable[[Towers], ImageForward]]


def keep_compiled(cache_dir: Path | None) -> None:
    """Has Triton and Inductor keep what they compile in a directory, unless theirs is set already."""
    if cache_dir is None:
        return
    for variable, name in (("TRITON_CACHE_DIR", "triton"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
        os.environ.setdefault(variable, str(cache_dir / name))


def _epilogues(towers: Towers) -> ImageForward:
    _check_triton()
    from alignserve_server.model.runtimes.kernels.epilogues import EpilogueForward

    return EpilogueForward(towers)


def _fused(towers: Towers) -> ImageForward:
    _check_triton()
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


MAKERS: Makers = {
    "epilogues": _epilogues,
    "fused": _fused,
    "compiled": _compiled,
}
AUTOMATIC: tuple[KernelsName, ...] = ("epilogues", "fused")  # they compile in seconds
