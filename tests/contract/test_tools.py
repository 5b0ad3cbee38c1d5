"""grpcurl and buf curl call a server that requires keys, as server/docs/access.md shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from alignserve.cli import main
from alignserve_server.access.keys import Scope, changed_keys, new_key
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2

from tests.processes import BIN, ROOT, ServerProcess, run, server_process

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
    """A key that allows embedding only, one call at a time."""
    with changed_keys(api_keys_file) as keys:
        key, keys["search"] = new_key("search", frozenset({Scope.EMBED}), max_concurrent_requests=1)
    return f"authorization: Bearer {key}"


@pytest.fixture(scope="module")
def server(api_keys_file: Path, header: str) -> Iterator[ServerProcess]:
    with server_process("--checkpoint", "fake", "--api-keys-file", str(api_keys_file)) as process:
        yield process


def test_grpcurl_finds_and_calls_the_api_with_a_key(server: ServerProcess, header: str) -> None:
    """grpcurl calls the server by reflection, without a proto file."""
    grpcurl = (BIN / "grpcurl", "-plaintext", "-H", header)

    services = run(*grpcurl, server.address, "list")
    answer = run(*grpcurl, "-d", REQUEST, server.address, EMBED_TEXT)
    health = run(*grpcurl, server.address, HEALTH)

    assert "alignserve.v1.AlignService" in services.stdout, services.stderr
    assert json.loads(answer.stdout)["embeddings"], answer.stderr
    assert json.loads(health.stdout) == {"status": "SERVING"}


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
def test_buf_curl_calls_the_api_with_a_key(server: ServerProcess, header: str, version: str) -> None:
    """buf curl works with both versions of the reflection service."""
    curl = (BIN / "buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc", "-H", header)
    reflect = ("--reflect-header", "*", "--reflect-protocol", version)

    answer = run(*curl, *reflect, "-d", REQUEST, f"http://{server.address}/{EMBED_TEXT}")

    assert json.loads(answer.stdout)["embeddings"], answer.stderr


def test_grpcurl_prints_the_details_of_errors_with_the_descriptor_set(
    server: ServerProcess, header: str, tmp_path: Path
) -> None:
    """With the set that `alignserve protos` writes, or the baseline, the reason is text instead of bytes."""
    assert main(["protos", "--descriptor-set", str(tmp_path / "set.binpb")]) == 0

    for protoset in (tmp_path / "set.binpb", ROOT / "protos/baseline.binpb"):
        refused = run(
            *(BIN / "grpcurl", "-plaintext", "-H", header, "-protoset", protoset),
            *("-d", '{"texts": [" "]}', server.address, EMBED_TEXT),
        )

        assert '"reason":"TEXT_EMPTY"' in refused.stderr.replace(" ", "")
        assert '"field":"texts[0]"' in refused.stderr.replace(" ", "")


@pytest.mark.parametrize("name", ["grpc.reflection.v1", "grpc.reflection.v1alpha"])
def test_reflection_describes_itself(server: ServerProcess, header: str, name: str) -> None:
    """Reflection describes its messages in the package that was requested."""
    described = run(
        *(BIN / "grpcurl", "-plaintext", "-H", header, server.address),
        *("describe", f"{name}.ServerReflection"),
    )

    assert f"stream .{name}.ServerReflectionRequest" in described.stdout, described.stderr


def test_grpcurl_checks_health_without_a_key(server: ServerProcess, tmp_path: Path) -> None:
    """Health answers without a key, given its proto: reflection requires a key."""
    files = FileDescriptorSet()
    health_pb2.DESCRIPTOR.CopyToProto(files.file.add())
    (tmp_path / "health.binpb").write_bytes(files.SerializeToString())

    health = run(
        BIN / "grpcurl", "-plaintext", "-protoset", tmp_path / "health.binpb", server.address, HEALTH
    )

    assert json.loads(health.stdout) == {"status": "SERVING"}, health.stderr
