"""Checks that the built distributions contain what they should, and nothing else.

python -m tests.release.distributions dist
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

from packaging.metadata import Metadata

from tests.processes import ROOT

VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@dataclass(frozen=True)
class Distribution:
    """One of the two distributions, with its contents and limits."""

    name: str
    project: Path
    package: Path
    licenses: tuple[str, ...]
    max_bytes: int  # of each file
    sdist_extras: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()  # files of the repository that the wheel has inside the package

    @property
    def stem(self) -> str:
        """The prefix of its file names."""
        return f"{self.name.replace('-', '_')}-{VERSION}"

    @property
    def dist_info(self) -> str:
        """The name of the metadata folder in its wheel."""
        return f"{self.stem}.dist-info"

    def wheel(self, folder: Path) -> Path:
        """The path of its wheel."""
        return folder / f"{self.stem}-py3-none-any.whl"

    def sdist(self, folder: Path) -> Path:
        """The path of its source distribution."""
        return folder / f"{self.stem}.tar.gz"


PROTOS = (
    "protos/alignserve/v1/align_service.proto",
    "protos/google/rpc/error_details.proto",
    "protos/google/rpc/status.proto",
)
CLIENT = Distribution(
    "alignserve",
    ROOT,
    ROOT / "client/python/alignserve",
    licenses=("LICENSE",),
    max_bytes=2_000_000,
    sdist_extras=("CHANGELOG.md", *PROTOS),
    moved=PROTOS,
)
SERVER = Distribution(
    "alignserve-server",
    ROOT / "server",
    ROOT / "server/alignserve_server",
    licenses=("LICENSE", "alignserve_server/model/checkpoints/mini/NOTICE"),
    max_bytes=100_000_000,  # PyPI's limit
    sdist_extras=("hatch_build.py",),
)


def build(distribution: Distribution, folder: Path, *options: str) -> None:
    """Builds a source distribution, and a wheel from it, without the network."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), *options]
    done = subprocess.run([*command, distribution.project], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"building {distribution.name} failed:\n{done.stdout}{done.stderr}")


def problems(distribution: Distribution, folder: Path) -> list[str]:
    """Returns what is wrong with the wheel and the source distribution in a folder."""
    archives = (distribution.wheel(folder), distribution.sdist(folder))
    found = [f"{path.name} is missing" for path in archives if not path.exists()]
    if not found:
        found = [*_wheel_problems(distribution, folder), *_sdist_problems(distribution, folder)]
        found += [
            f"{path.name} has {path.stat().st_size:,} bytes, limit {distribution.max_bytes:,}"
            for path in archives
            if path.stat().st_size > distribution.max_bytes
        ]
    return found


def tree_problems(distribution: Distribution, folder: Path) -> list[str]:
    """Returns how the wheel built from the source distribution differs from one built from the tree."""
    with tempfile.TemporaryDirectory() as name:
        build(distribution, Path(name), "--wheel")
        from_tree = _digests(distribution, Path(name))
    differing = {name for name, _ in from_tree ^ _digests(distribution, folder)}
    return [f"{distribution.wheel(folder).name}: {name} differs from the tree" for name in sorted(differing)]


def _wheel_problems(distribution: Distribution, folder: Path) -> Iterator[str]:
    wheel = distribution.wheel(folder)
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    licenses = {f"{distribution.dist_info}/licenses/{name}" for name in distribution.licenses}
    metadata = {
        f"{distribution.dist_info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")
    }
    moved = {f"{distribution.package.name}/{name}" for name in distribution.moved}
    yield from _differences(wheel.name, names, _package_files(distribution) | moved | licenses | metadata)
    if names >= licenses | metadata:
        yield from _license_problems(distribution, wheel)
        yield from _metadata_problems(distribution, wheel)


def _license_problems(distribution: Distribution, wheel: Path) -> Iterator[str]:
    for name in distribution.licenses:
        source = ROOT / name if name == "LICENSE" else distribution.project / name
        if _read(wheel, f"{distribution.dist_info}/licenses/{name}") != source.read_text():
            yield f"{wheel.name}: {name} differs from {source.relative_to(ROOT)}"


def _metadata_problems(distribution: Distribution, wheel: Path) -> Iterator[str]:
    try:
        metadata = Metadata.from_email(_read(wheel, f"{distribution.dist_info}/METADATA"), validate=True)
    except ExceptionGroup as errors:
        yield from (f"{wheel.name}: {error}" for error in errors.exceptions)
        return
    if (metadata.name, str(metadata.version)) != (distribution.name, VERSION):
        yield f"{wheel.name}: its metadata is for {metadata.name} {metadata.version}"
    if metadata.description_content_type != "text/markdown" or not metadata.description:
        yield f"{wheel.name}: its description is not Markdown"
    relative = re.findall(r"\]\((?!https?:|#)[^)]+\)", metadata.description or "")
    yield from (f"{wheel.name}: its description has the relative link {link[1:]}" for link in relative)
    if tuple(metadata.license_files or ()) != distribution.licenses:
        yield f"{wheel.name}: its metadata names the licenses {metadata.license_files}"
    pins = [str(one.specifier) for one in metadata.requires_dist or () if one.name == CLIENT.name]
    if pins != ([] if distribution == CLIENT else [f"=={VERSION}"]):
        yield f"{wheel.name}: it requires alignserve{','.join(pins)}"


def _sdist_problems(distribution: Distribution, folder: Path) -> Iterator[str]:
    sdist = distribution.sdist(folder)
    with tarfile.open(sdist) as archive:
        names = {str(PurePosixPath(name).relative_to(distribution.stem)) for name in archive.getnames()}
    inside = distribution.package.relative_to(distribution.project).parent
    package = {str(inside / name) for name in _package_files(distribution)}
    # hatchling adds .gitignore, so that a build from the source distribution excludes the same files.
    always = {".gitignore", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    yield from _differences(sdist.name, names, package | always | {*distribution.sdist_extras})


def _differences(archive: str, names: set[str], expected: set[str]) -> Iterator[str]:
    yield from (f"{archive} has {name}" for name in sorted(names - expected))
    yield from (f"{archive} lacks {name}" for name in sorted(expected - names))


def _package_files(distribution: Distribution) -> set[str]:
    """Returns the package's tracked or addable files, as named in a wheel."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."]
    listed = subprocess.run(command, cwd=distribution.package, capture_output=True, text=True, check=True)
    return {
        f"{distribution.package.name}/{name}"
        for name in listed.stdout.splitlines()
        if (distribution.package / name).exists()
    }


def _digests(distribution: Distribution, folder: Path) -> set[tuple[str, str]]:
    """Returns each file of the wheel with its digest."""
    lines = _read(distribution.wheel(folder), f"{distribution.dist_info}/RECORD").splitlines()
    return {(name, digest) for name, digest, _ in (line.rsplit(",", 2) for line in lines)}


def _read(wheel: Path, name: str) -> str:
    with ZipFile(wheel) as archive:
        return archive.read(name).decode()


def main() -> str | None:
    """Prints the size of each file; returns all problems, one per line, or None."""
    folder = Path(sys.argv[1])
    found = []
    for distribution in (CLIENT, SERVER):
        found += problems(distribution, folder) or tree_problems(distribution, folder)
    if found:
        return "\n".join(found)
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size:>12,} bytes  {path.name}")
    return None


if __name__ == "__main__":
    sys.exit(main())
