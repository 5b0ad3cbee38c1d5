"""The commands in the documents work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from alignserve.v1 import align_service_pb2 as pb

from tests.contract.documents import code_blocks, read
from tests.processes import BIN, ROOT, ServerProcess, run

SHELL_EXAMPLES = [
    block
    for page in ("README.md", "protos/README.md")
    for block in code_blocks(read(page), "sh")
    if re.search(r"^ *(grpcurl|alignserve) ", block, re.MULTILINE)
]
PYTHON_EXAMPLES = code_blocks(read("README.md"), "python")
RPCS = [method.name for method in pb.DESCRIPTOR.services_by_name["AlignService"].methods]


@pytest.mark.contract
@pytest.mark.parametrize("example", SHELL_EXAMPLES, ids=lambda example: example.split()[0])
def test_shell_examples_work(example: str, server: ServerProcess) -> None:
    """Each command of these pages succeeds when it is pasted in the repository's root."""
    command = f"export ALIGNSERVE_SERVER=localhost:50051\n{example}"

    result = run("bash", "-euo", "pipefail", "-c", _at(server, command))

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.contract
@pytest.mark.parametrize("rpc", RPCS)
def test_every_rpc_has_a_grpcurl_example(rpc: str) -> None:
    """These pages show how to call each RPC without stubs."""
    assert any("grpcurl" in example and f"AlignService/{rpc}" in example for example in SHELL_EXAMPLES)


@pytest.mark.parametrize("example", PYTHON_EXAMPLES, ids=lambda example: example.splitlines()[-1][:60])
def test_python_examples_of_the_readme_work(example: str, server: ServerProcess) -> None:
    """Each Python snippet of README.md runs in the repository's root."""
    result = run(BIN / "python", "-c", _at(server, example))

    assert result.returncode == 0, result.stderr


def test_server_explains_its_flags() -> None:
    """`alignserve-server --help` names the settings and exits with 0."""
    result = run(BIN / "alignserve-server", "--help")

    assert result.returncode == 0
    assert "--max-batch-size" in result.stdout


def test_continuous_integration_runs_every_test(tmp_path: Path) -> None:
    """`.ci/run` runs `make test-all` in the repository's root, whatever the current folder."""
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "make $@ in $PWD"\n')
    make.chmod(0o755)

    result = run("bash", ROOT / ".ci" / "run", cwd=tmp_path, path=tmp_path)

    assert result.stdout.strip() == f"make test-all in {ROOT}"


def _at(server: ServerProcess, example: str) -> str:
    return example.replace("localhost:50051", f"localhost:{server.port}").replace(
        "localhost:9464", f"localhost:{server.metrics_port}"
    )
