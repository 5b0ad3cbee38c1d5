"""The examples of client/README.md, as somebody would paste them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alignserve.testing import FakeServer

from tests.contract.documents import code_blocks, read

EXAMPLES = code_blocks(read("client/README.md"), "python")
PROGRAMS = [example for example in EXAMPLES if "import pytest" not in example]
TESTS = [example for example in EXAMPLES if "import pytest" in example]


@pytest.mark.parametrize("example", PROGRAMS, ids=lambda example: example.strip().splitlines()[-1])
def test_programs_run(server: FakeServer, photo: Path, tmp_path: Path, example: str) -> None:
    """Each program runs in a folder with photos, against a server that is there."""
    (tmp_path / "photos").mkdir()
    for copy in ("cat.jpg", "photos/cat.jpg"):
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


@pytest.mark.parametrize("example", TESTS, ids=["test"])
def test_tests_pass(tmp_path: Path, example: str) -> None:
    """What the section on testing shows is a test that passes."""
    (tmp_path / "test_example.py").write_text(example)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
