"""Generates the Python stubs and the descriptors of the Open Inference Protocol, or checks them.

python protos/generate.py            write client/python/alignserve/v1/ and kserve/open_inference.binpb
python protos/generate.py --check    exit 1 if one differs
python protos/generate.py --image F  write a descriptor set of all files, with their comments
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).parent
STUBS = PROTOS.parent / "client" / "python" / "alignserve" / "v1"
OPEN_INFERENCE = PROTOS.parent / "server" / "alignserve_server" / "kserve" / "open_inference.proto"
SOURCES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("alignserve/**/*.proto"))
# Details of errors, which no source imports: tools print them if the descriptor set has their types.
ERROR_DETAILS = "google/rpc/error_details.proto"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--image", metavar="FILE", help="write a descriptor set instead of stubs")
    arguments = parser.parse_args()
    if arguments.image:
        options = ("--include_imports", "--include_source_info", f"--descriptor_set_out={arguments.image}")
        _run_protoc(*options, ERROR_DETAILS)
        return 0
    if not arguments.check:
        _generate(STUBS.parent.parent)
        _describe_open_inference(OPEN_INFERENCE.with_suffix(".binpb"))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        _generate(Path(folder))
        described = Path(folder, OPEN_INFERENCE.with_suffix(".binpb").name)
        _describe_open_inference(described)
        stubs = _compare(Path(folder, "alignserve", "v1"), STUBS)
        return max(stubs, _compare_file(described, OPEN_INFERENCE.with_suffix(".binpb")))


def _generate(out: Path) -> None:
    _run_protoc(
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out={out}",
        f"--mypy_grpc_out={out}",
        f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
    )


def _describe_open_inference(out: Path) -> None:
    options = [f"-I{OPEN_INFERENCE.parent}", f"--descriptor_set_out={out}", OPEN_INFERENCE.name]
    if protoc.main(["protoc", *options]) != 0:
        raise SystemExit("protoc failed")


def _run_protoc(*options: str) -> None:
    well_known = Path(grpc_tools.__file__).parent / "_proto"  # google/protobuf, which comes with every protoc
    includes = [f"-I{PROTOS}", f"-I{well_known}"]
    if protoc.main(["protoc", *includes, *options, *SOURCES]) != 0:
        raise SystemExit("protoc failed")


def _compare(fresh: Path, committed: Path) -> int:
    """Compares the files of one folder with those of another; returns the exit code."""
    return max([_compare_file(path, committed / path.name) for path in sorted(fresh.iterdir())])


def _compare_file(fresh: Path, committed: Path) -> int:
    if committed.is_file() and filecmp.cmp(fresh, committed, shallow=False):
        return 0
    print(f"{committed.relative_to(PROTOS.parent)} does not match the protos; run `make protos`")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
