"""Brings the photographs of `sources.json` into a folder: pinned, verified, resumed.

`python -m server.recipes.mini.photos FOLDER` writes each as `FOLDER/SOURCE/PATH`. A repository comes from its
host at the pinned commit, without its other files, or from `--mirror DIR`, which holds `OWNER+NAME/repo`. A
Debian package comes from apt at the pinned version. What lies in FOLDER with the right digest is not fetched
again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.recipes.mini.digests import file_digest

SOURCES = Path(__file__).parent / "sources.json"


@dataclass(frozen=True)
class Source:
    """One repository or package. `pin` is a commit or a version; `files` maps each path to its SHA-256."""

    id: str
    kind: str
    name: str
    pin: str
    root: str
    archive_sha256: str
    files: dict[str, str]


def read(path: Path = SOURCES) -> list[Source]:
    """Every source of the list, with the photographs held out for questions."""
    return [_source(each) for each in json.loads(path.read_text("utf-8"))["sources"]]


def _source(each: dict[str, Any]) -> Source:  # Any: JSON
    return Source(
        id=each["id"],
        kind=each["kind"],
        name=each["name"],
        pin=each.get("commit") or each["version"],
        root=each.get("root", ""),
        archive_sha256=each.get("archive_sha256", ""),
        files={picture["path"]: picture["sha256"] for picture in each["pictures"]},
    )


def missing(source: Source, folder: Path) -> list[str]:
    """The paths that FOLDER lacks or holds with another content."""
    return [path for path, digest in source.files.items() if _sha256(folder / source.id / path) != digest]


def bring(source: Source, folder: Path, mirror: Path | None) -> list[str]:
    """Fetches what is missing and returns what is still missing.

    Raises `OSError` or `subprocess.CalledProcessError` if the source cannot be reached.
    """
    wanted = missing(source, folder)
    if not wanted:
        return []
    folder = folder.absolute()  # git changes to its work tree before it reads other paths
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        _KINDS[source.kind](source, wanted, tree, mirror)
        for path in wanted:
            if _sha256(tree / path) == source.files[path]:
                target = folder / source.id / path
                target.parent.mkdir(parents=True, exist_ok=True)
                (tree / path).replace(target)
    return missing(source, folder)


def _from_github(source: Source, paths: Sequence[str], tree: Path, mirror: Path | None) -> None:
    if mirror is None:
        git = tree.parent / "git"
        _run("git", "init", "--quiet", "--bare", str(git))
        remote = ("remote.origin.promisor=true", "remote.origin.partialclonefilter=blob:none")
        for setting in (f"remote.origin.url=https://github.com/{source.name}", *remote):
            _run("git", f"--git-dir={git}", "config", *setting.split("=", 1))
        partial = ("--quiet", "--depth=1", "--filter=blob:none")
        _run("git", f"--git-dir={git}", "fetch", *partial, "origin", source.pin)
    else:
        git = mirror / source.name.replace("/", "+") / "repo"
        git = git / ".git" if (git / ".git").is_dir() else git
    listed = tree.parent / "paths"
    listed.write_bytes(b"\0".join(path.encode() for path in paths))
    _run(
        *("git", f"--git-dir={git}", f"--work-tree={tree}", "checkout", "--quiet", source.pin),
        *(f"--pathspec-from-file={listed}", "--pathspec-file-nul"),
        # the pins are paths, not patterns; an index of our own leaves a mirror as it was
        environment={"GIT_INDEX_FILE": str(tree.parent / "index"), "GIT_LITERAL_PATHSPECS": "1"},
    )


def _from_debian(source: Source, paths: Sequence[str], tree: Path, mirror: Path | None) -> None:
    del mirror  # apt has mirrors of its own
    work = tree.parent
    _run("apt-get", "-o", "APT::Sandbox::User=root", "download", f"{source.name}={source.pin}", folder=work)
    (package,) = work.glob("*.deb")
    if _sha256(package) != source.archive_sha256:
        raise OSError(f"{package.name} is not the package that was listed")
    _run("dpkg-deb", "--extract", str(package), str(work / "package"))
    root = work / "package" / source.root
    for path in paths:
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        archive, _, member = path.partition("/")
        if (root / f"{archive}.rcc").exists():
            target.write_bytes(dict(resources((root / f"{archive}.rcc").read_bytes()))[member])
        else:
            shutil.copyfile(root / path, target)


_KINDS = {"github": _from_github, "debian": _from_debian}


def resources(rcc: bytes) -> Iterator[tuple[str, bytes]]:
    """The path and content of every file in a Qt resource archive, stored plainly or by zlib."""
    version, tree, data, names = struct.unpack_from(">IIII", rcc, 4)
    size = 22 if version >= 2 else 14

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        name, flags, first, second = struct.unpack_from(">IHII", rcc, tree + node * size)
        length = struct.unpack_from(">H", rcc, names + name)[0]
        own = rcc[names + name + 6 :][: 2 * length].decode("utf-16-be") if node else ""
        path = f"{folder}/{own}".strip("/")
        if flags & 2:  # a folder: `first` children from node `second`
            for child in range(second, second + first):
                yield from walk(child, path)
        else:  # a file: `second` is where its length and content lie
            length = struct.unpack_from(">I", rcc, data + second)[0]
            content = rcc[data + second + 4 :][:length]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    return walk(0, "")


def _run(*command: str, folder: Path | None = None, environment: dict[str, str] | None = None) -> None:
    subprocess.run(
        command, check=True, cwd=folder, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL
    )


def _sha256(path: Path) -> str:
    return file_digest(path) if path.is_file() else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches all sources. Exit status 1 if some photograph is still missing."""
    parser = argparse.ArgumentParser(prog="photos", description="Fetch the recipe's photographs.")
    parser.add_argument("folder", type=Path, help="where they go; a filled one is only verified")
    parser.add_argument("--mirror", type=Path, help="folder of git repositories, OWNER+NAME/repo")
    parser.add_argument("--sources", type=Path, default=SOURCES, help="the list (default: %(default)s)")
    args = parser.parse_args(arguments)
    sources = read(args.sources)
    lost = 0
    for number, source in enumerate(sources, 1):
        try:
            absent = bring(source, args.folder, args.mirror)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"  {source.id}: {error}", file=sys.stderr)
            absent = missing(source, args.folder)
        lost += len(absent)
        whole = len(source.files)
        print(f"{number}/{len(sources)} {source.id}: {whole - len(absent)} of {whole} photographs")
        for path in absent:
            print(f"  missing: {path}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
