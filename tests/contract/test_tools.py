"""grpcurl and buf curl against a server that asks for keys, as server/README.md says to call them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from alignserve_server.access.keys import Scope, changed_keys, new_key
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2

from tests.processes import BIN, ServerProcess, run, server_process

pytestmark = pytest.mark.contract

EMBED_TEXT = "alignserve.v1.AlignService/EmbedText"
HEALTH = "grpc.health.v1.Health/Check"
REQUEST = '{"texts": ["a cat"]}'


@pytest.fixture(scope="module")
def api_keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    with changed_keys(path):
        pass
    return path


@pytest.fixture(scope="module")
def header(api_keys_file: Path) -> str:
    """A key for embedding alone, with room for one call at once."""
    with changed_keys(api_keys_file) as keys:
        key, keys["search"] = new_key("search", frozenset({Scope.EMBED}), max_concurrent_requests=1)
    return f"authorization: Bearer {key}"


@pytest.fixture(scope="module")
def server(api_keys_file: Path, header: str) -> Iterator[ServerProcess]:
    with server_process("--checkpoint", "fake", "--api-keys-file", str(api_keys_file)) as process:
        yield process


def test_grpcurl_finds_and_calls_the_api_with_a_key(server: ServerProcess, header: str) -> None:
    """By reflection, without a proto at hand."""
    grpcurl = (BIN / "grpcurl", "-plaintext", "-H", header)

    services = run(*grpcurl, server.address, "list")
    answer = run(*grpcurl, "-d", REQUEST, server.address, EMBED_TEXT)
    health = run(*grpcurl, server.address, HEALTH)

    assert "alignserve.v1.AlignService" in services.stdout, services.stderr
    assert json.loads(answer.stdout)["embeddings"], answer.stderr
    assert json.loads(health.stdout) == {"status": "SERVING"}


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
def test_buf_curl_calls_the_api_with_a_key(server: ServerProcess, header: str, version: str) -> None:
    """By either name of reflection."""
    curl = (BIN / "buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc", "-H", header)
    reflect = ("--reflect-header", "*", "--reflect-protocol", version)

    answer = run(*curl, *reflect, "-d", REQUEST, f"http://{server.address}/{EMBED_TEXT}")

    assert json.loads(answer.stdout)["embeddings"], answer.stderr


@pytest.mark.parametrize("name", ["grpc.reflection.v1", "grpc.reflection.v1alpha"])
def test_reflection_describes_itself(server: ServerProcess, header: str, name: str) -> None:
    """In the package by whose name it was asked for."""
    described = run(
        *(BIN / "grpcurl", "-plaintext", "-H", header, server.address),
        *("describe", f"{name}.ServerReflection"),
    )

    assert f"stream .{name}.ServerReflectionRequest" in described.stdout, described.stderr


def test_grpcurl_checks_health_without_a_key(server: ServerProcess, tmp_path: Path) -> None:
    """With the proto of health, since without a key there is no reflection."""
    files = FileDescriptorSet()
    health_pb2.DESCRIPTOR.CopyToProto(files.file.add())
    (tmp_path / "health.binpb").write_bytes(files.SerializeToString())

    health = run(
        BIN / "grpcurl", "-plaintext", "-protoset", tmp_path / "health.binpb", server.address, HEALTH
    )

    assert json.loads(health.stdout) == {"status": "SERVING"}, health.stderr
