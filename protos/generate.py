"""Generates the Python stubs, or checks that the committed ones match the protos.

python protos/generate.py            write client/python/alignserve/v1/
python protos/generate.py --check    exit 1 if a stub differs
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
        return 0
    with tempfile.TemporaryDirectory() as folder:
        _generate(Path(folder))
        return _compare(Path(folder, "alignserve", "v1"))


def _generate(out: Path) -> None:
    _run_protoc(
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out={out}",
        f"--mypy_grpc_out={out}",
        f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
    )


def _run_protoc(*options: str) -> None:
    well_known = Path(grpc_tools.__file__).parent / "_proto"  # google/protobuf, which comes with every protoc
    includes = [f"-I{PROTOS}", f"-I{well_known}"]
    if protoc.main(["protoc", *includes, *options, *SOURCES]) != 0:
        raise SystemExit("protoc failed")


def _compare(fresh: Path) -> int:
    names = sorted(path.name for path in fresh.iterdir())
    stale = [
        name
        for name in names
        if not (STUBS / name).is_file() or not filecmp.cmp(fresh / name, STUBS / name, False)
    ]
    for name in stale:
        print(f"{STUBS.relative_to(PROTOS.parent)}/{name} does not match the protos; run `make protos`")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
