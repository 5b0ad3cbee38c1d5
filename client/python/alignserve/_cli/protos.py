"""The command `alignserve protos`: writes the protos, for stubs in other languages."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2

from alignserve.v1 import align_service_pb2 as pb

_PACKAGED = Path(__file__).parents[1] / "protos"
_CHECKOUT = Path(__file__).parents[4] / "protos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="write the .proto files below this folder, made if needed"
    )
    parser.add_argument(
        "--descriptor-set",
        metavar="FILE",
        type=Path,
        help="write a FileDescriptorSet with all files and the types of error details, for grpcurl -protoset",
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that differ")


def write(args: argparse.Namespace) -> list[str]:
    """Writes what the options ask for, and returns a line for each file.

    Raises:
        FileExistsError: A file differs from what would be written, or is a folder; then none is written.
        OSError: A file cannot be written.
    """
    files = dict(_files(args))
    for path, content in files.items():
        if path.is_dir():
            raise FileExistsError(f"{path} is a folder; a file of that name is to be written")
        if not args.force and path.exists() and path.read_bytes() != content:
            raise FileExistsError(f"{path} exists and differs; use --force to overwrite it")
    return [_written(path, content) for path, content in files.items()]


def descriptor_set() -> FileDescriptorSet:
    """Returns every file of the API and its imports, imports first; without comments."""
    found: dict[str, FileDescriptor] = {}
    for file in (error_details_pb2.DESCRIPTOR, pb.DESCRIPTOR):
        _collect(file, found)
    files = FileDescriptorSet()
    for file in found.values():
        file.CopyToProto(files.file.add())
    return files


def _collect(file: FileDescriptor, found: dict[str, FileDescriptor]) -> None:
    for imported in file.dependencies:
        _collect(imported, found)
    found.setdefault(file.name, file)


def _files(args: argparse.Namespace) -> Iterator[tuple[Path, bytes]]:
    if args.out is not None:
        source = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
        for file in sorted(source.rglob("*.proto")):
            yield args.out / file.relative_to(source), file.read_bytes()
    if args.descriptor_set is not None:
        yield args.descriptor_set, descriptor_set().SerializeToString(deterministic=True)


def _written(path: Path, content: bytes) -> str:
    if path.exists() and path.read_bytes() == content:
        return f"unchanged {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return f"wrote {path}"
