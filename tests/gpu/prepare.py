"""Fills `.gpu/wheels` with the packages that a bare machine lacks. A lent machine has no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from tests.gpu.machine import ROOT

FOLDER = ROOT / ".gpu"  # ignored by git
WHEELS = FOLDER / "wheels"
NAMES = Path(__file__).parent / "wheels.txt"
LIMIT_MIB = 64  # for all files sent to a lent machine
UNNEEDED = ("server/alignserve_server/model/checkpoints/mini/prepared", "server/recipes")
"""Folders to delete before the copy: OpenVINO's form of the checkpoint, and how the checkpoint was made."""

_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")


def prepare(python: str) -> int:
    """Downloads the wheels for a version of Python; returns 1 if the total exceeds the limit."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    subprocess.run(_download(python), check=True)
    for wheel in sorted(WHEELS.glob("*.whl")):
        repack(wheel)
    size_mib = (_tracked_bytes() + _bytes(FOLDER.rglob("*"))) / 2**20
    print(f"{WHEELS} is ready; with the repository it takes {size_mib:.0f} of {LIMIT_MIB} MiB")
    if size_mib > LIMIT_MIB:
        print(f"too large for a lent machine; delete what a GPU does not need: {' '.join(UNNEEDED)}")
        return 1
    return 0


def repack(wheel: Path) -> None:
    """Compresses a wheel again, with LZMA, which pip can read. It gets smaller by a sixth."""
    draft = wheel.with_suffix(".draft")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(draft, "w") as new:
        for member in old.infolist():
            new.writestr(member, old.read(member), zipfile.ZIP_LZMA)
    draft.replace(wheel)


def pinned() -> list[str]:
    """Returns the packages to download as NAME==VERSION, with the versions of constraints.txt.

    Raises:
        LookupError: A package is not pinned there.
    """
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    versions = {_normalized(line.split("==")[0]): line for line in lines if "==" in line}
    return [versions[_normalized(name)] for name in NAMES.read_text("utf-8").split()]


def _download(python: str) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--dest", str(WHEELS)]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    return [*command, *pinned()]


def _normalized(name: str) -> str:
    return name.lower().replace("_", "-")


def _tracked_bytes() -> int:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return _bytes(ROOT / name for name in names.stdout.split("\0") if name)


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())
