"""The examples of client/README.md work when pasted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from alignserve._channel import SERVICE
from alignserve.testing import FakeServer
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.contract.documents import code_blocks, read

EXAMPLES = code_blocks(read("client/README.md"), "python")
PROGRAMS = [example for example in EXAMPLES if "import pytest" not in example]
(SERVICE_CONFIG,) = code_blocks(read("client/README.md"), "json")
COMMANDS = [
    line
    for block in code_blocks(read("client/README.md"), "sh")
    for line in block.splitlines()
    if "alignserve " in line and not line.startswith(("pip", "grpcurl", " ", "protoc"))
]
TESTS = [example for example in EXAMPLES if "import pytest" in example]


@pytest.mark.parametrize("example", PROGRAMS, ids=lambda example: example.strip().splitlines()[-1])
def test_programs_run(server: FakeServer, photo: Path, tmp_path: Path, example: str) -> None:
    """Each program runs in a folder with photos, against a running server."""
    (tmp_path / "photos").mkdir()
    for copy in ("bag.jpg", "cat.jpg", "photos/cat.jpg"):
        shutil.copy(photo, tmp_path / copy)
    there = example.replace('"127.0.0.1:50051"', "TARGET").replace("Client()", "Client(TARGET)")
    program = f"TARGET = {server.target!r}\n{there}"

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run(server: FakeServer, photo: Path, tmp_path: Path, line: str) -> None:
    """Each command runs in a folder with photos and queries; measurements are shortened."""
    (tmp_path / "photos").mkdir()
    for copy in ("bag.jpg", "cat.jpg", "dog.jpg", "photos/cat.jpg"):
        shutil.copy(photo, tmp_path / copy)
    (tmp_path / "captions.tsv").write_text("cat.jpg\ta cat\ndog.jpg\ta dog\n")
    (tmp_path / "queries.txt").write_text("a cat\na dog\n")
    shell = f'alignserve() {{ "{sys.executable}" -m alignserve.cli "$@"; }}\n{shortened(line)}'

    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shell],
        cwd=tmp_path,
        env={**os.environ, "ALIGNSERVE_TARGET": server.target},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def shortened(line: str) -> str:
    """Returns a command, shortened if it is `bench`."""
    command = line.partition(" #")[0]
    return f"{command} --duration-seconds 0.1 --warmup-seconds 0" if " bench" in command else command


@pytest.mark.parametrize("example", TESTS, ids=["test"])
def test_tests_pass(tmp_path: Path, example: str) -> None:
    """The test in the section on testing passes."""
    (tmp_path / "test_example.py").write_text(example)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_the_service_config_retries_every_unary_call() -> None:
    """The service config lists every unary method; gRPC cannot resume streams."""
    (method_config,) = json.loads(SERVICE_CONFIG)["methodConfig"]

    assert method_config["name"] == [
        {"service": SERVICE.full_name, "method": method.name}
        for method in SERVICE.methods
        if not method.client_streaming
    ]
    assert method_config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]


def test_plain_grpc_retries_by_the_service_config(server: FakeServer) -> None:
    """A client made of only stubs survives a short outage of the server."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", times=3)
    with grpc.insecure_channel(server.target, [("grpc.service_config", SERVICE_CONFIG)]) as channel:
        stub = pb_grpc.AlignServiceStub(channel)

        response = stub.EmbedText(pb.EmbedTextRequest(texts=["a cat"]), timeout=30)

    assert len(response.embeddings) == 1
    assert [call.method for call in server.received] == ["EmbedText"] * 4
