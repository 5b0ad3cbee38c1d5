"""The protos pass the linter, stay compatible with the last release, and match the stubs."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.rpc import error_details_pb2, status_pb2

from tests.processes import BIN, ROOT, run

pytestmark = pytest.mark.contract

PROTOS = ROOT / "protos"
AGAINST_BASELINE = ("--against", str(PROTOS / "baseline.binpb"))


def test_stubs_equal_the_protos() -> None:
    """Generating the Python stubs again changes nothing."""
    check = run(sys.executable, "protos/generate.py", "--check")

    assert check.returncode == 0, check.stdout


def test_protos_are_lint_clean() -> None:
    """buf's STANDARD and COMMENTS rules hold."""
    lint = run(BIN / "buf", "lint", PROTOS)

    assert lint.returncode == 0, lint.stdout


def test_protos_are_formatted() -> None:
    """The protos are formatted as buf formats them."""
    formatted = run(BIN / "buf", "format", "--diff", "--exit-code", "protos")

    assert formatted.returncode == 0, formatted.stdout


def test_protos_do_not_break_the_last_release() -> None:
    """Clients of the last release understand the present API."""
    breaking = run(BIN / "buf", "breaking", PROTOS, *AGAINST_BASELINE)

    assert breaking.returncode == 0, breaking.stdout


def test_a_renumbered_field_breaks(tmp_path: Path) -> None:
    """The comparison with the last release finds a breaking change."""
    changed = tmp_path / "protos"
    shutil.copytree(PROTOS, changed)
    proto = changed / "alignserve" / "v1" / "align_service.proto"
    text = proto.read_text()
    assert "bool truncate = 3;" in text
    proto.write_text(text.replace("bool truncate = 3;", "bool truncate = 30;"))

    breaking = run(BIN / "buf", "breaking", changed, *AGAINST_BASELINE)

    assert breaking.returncode != 0
    assert '"truncate"' in breaking.stdout


def test_the_folder_needs_no_other_protos_and_no_network(tmp_path: Path) -> None:
    """A copy of the folder builds by itself: buf can fetch nothing, and protoc gets no other folder."""
    copy = tmp_path / "protos"
    shutil.copytree(PROTOS, copy)
    offline = ("env", "https_proxy=http://127.0.0.1:9", f"BUF_CACHE_DIR={tmp_path / 'cache'}")

    built = run(*offline, BIN / "buf", "build", copy, "-o", tmp_path / "buf.binpb")
    compiled = run(
        *(sys.executable, "-m", "grpc_tools.protoc", "-I", copy),
        *("--descriptor_set_out", tmp_path / "set.binpb", "alignserve/v1/align_service.proto"),
    )

    assert built.returncode == 0, built.stderr
    assert compiled.returncode == 0, compiled.stderr


def test_copied_protos_equal_those_of_the_package() -> None:
    """`google/rpc` is what Python's own modules were generated from, apart from comments and formatting."""
    for module in (status_pb2, error_details_pb2):
        name = module.DESCRIPTOR.name
        ours = FileDescriptorSet.FromString((PROTOS / "baseline.binpb").read_bytes())
        (copied,) = (file for file in ours.file if file.name == name)
        packaged = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)

        assert _fields(copied) == _fields(packaged), name


def test_pythons_own_modules_come_from_googleapis() -> None:
    """The client ships no modules of google.rpc, which would clash with those of other packages."""
    (found,) = {Path(module.__file__ or "").parent for module in (status_pb2, error_details_pb2)}
    files = {Path(str(file.locate())) for file in distribution("googleapis-common-protos").files or ()}

    assert {found / "status_pb2.py", found / "error_details_pb2.py"} <= files


def test_the_baseline_has_the_error_details() -> None:
    """Tools that take it as a descriptor set can print the details of errors."""
    baseline = FileDescriptorSet.FromString((PROTOS / "baseline.binpb").read_bytes())

    assert "google/rpc/error_details.proto" in {file.name for file in baseline.file}


def _fields(file: FileDescriptorProto) -> set[tuple[str, str, int]]:
    return {
        (message.name, field.name, field.number) for message in file.message_type for field in message.field
    }
