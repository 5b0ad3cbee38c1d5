"""The OpenAPI document is valid, and true: schemathesis finds no request that it describes wrongly.

schemathesis has an environment of its own, which the test makes with uv; `SCHEMATHESIS` names another one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.processes import BIN, ROOT, ServerProcess, server_process

pytestmark = pytest.mark.contract

FOLDER = Path(__file__).parent / "openapi"
ENVIRONMENT = ROOT / ".venv" / "schemathesis"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server to which all bytes are images, so that random ones are accepted."""
    with server_process("--checkpoint", "fake", "--http-listen", "127.0.0.1:0") as process:
        yield process


@pytest.fixture(scope="module")
def schemathesis() -> str:
    """The program; it is installed unless it is there."""
    if program := os.environ.get("SCHEMATHESIS"):
        return program
    program = str(ENVIRONMENT / "bin" / "schemathesis")
    python = str(ENVIRONMENT / "bin" / "python")
    requirements = str(FOLDER / "requirements.txt")
    commands = [
        [str(BIN / "uv"), "venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)],
        [str(BIN / "uv"), "pip", "install", "--quiet", "--python", python, "--requirement", requirements],
    ]
    for command in [] if Path(program).exists() else commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = f"schemathesis cannot be installed: {done.stderr.strip()[-200:]}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
    return program


def test_the_document_describes_every_dialect(server: ServerProcess) -> None:
    """It needs no key, and each operation has a summary, an answer and errors."""
    with urlopen(f"http://127.0.0.1:{server.http_port}/openapi.json") as answer:
        document = json.load(answer)

    operations = [each for path in document["paths"].values() for each in path.values()]
    assert {tag for each in operations for tag in each["tags"]} == {
        "connect",
        "openai",
        "cohere",
        "tei",
        "weaviate",
        "huggingface",
    }
    assert all(each["summary"] and {"4XX", "5XX"} < set(each["responses"]) for each in operations)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_schemathesis_finds_nothing(server: ServerProcess, schemathesis: str, tmp_path: Path) -> None:
    """Valid requests are accepted, all others are refused, and each answer fits its schema."""
    done = subprocess.run(
        [
            *(schemathesis, "--config-file", str(FOLDER / "schemathesis.toml")),
            *("run", f"http://127.0.0.1:{server.http_port}/openapi.json"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    print(done.stdout[done.stdout.find("= SUMMARY") :])
    assert done.returncode == 0, done.stdout
    assert re.search(r"[0-9]+ generated", done.stdout)
