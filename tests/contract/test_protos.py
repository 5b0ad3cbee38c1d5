"""The protos pass the linter, stay compatible with the last release, and match the stubs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.processes import BIN, ROOT, run

pytestmark = pytest.mark.contract

PROTOS = ROOT / "protos"
CONFIG = ("--config", str(PROTOS / "buf.yaml"))
AGAINST_BASELINE = ("--against", str(PROTOS / "baseline.binpb"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The protos as a descriptor set."""
    return _image(PROTOS, tmp_path)


def test_stubs_equal_the_protos() -> None:
    """Generating the Python stubs again changes nothing."""
    check = run(sys.executable, "protos/generate.py", "--check")

    assert check.returncode == 0, check.stdout


def test_protos_are_lint_clean(image: Path) -> None:
    """buf's STANDARD and COMMENTS rules hold."""
    lint = run(BIN / "buf", "lint", image, *CONFIG)

    assert lint.returncode == 0, lint.stdout


def test_protos_are_formatted() -> None:
    """The protos are formatted as buf formats them."""
    formatted = run(BIN / "buf", "format", "--diff", "--exit-code", "protos")

    assert formatted.returncode == 0, formatted.stdout


def test_protos_do_not_break_the_last_release(image: Path) -> None:
    """Clients of the last release understand the present API."""
    breaking = run(BIN / "buf", "breaking", image, *AGAINST_BASELINE, *CONFIG)

    assert breaking.returncode == 0, breaking.stdout


def test_a_renumbered_field_breaks(tmp_path: Path) -> None:
    """The comparison with the last release finds a breaking change."""
    changed = tmp_path / "protos"
    shutil.copytree(PROTOS, changed)
    proto = changed / "alignserve" / "v1" / "align_service.proto"
    text = proto.read_text()
    assert "bool truncate = 3;" in text
    proto.write_text(text.replace("bool truncate = 3;", "bool truncate = 30;"))

    breaking = run(BIN / "buf", "breaking", _image(changed, tmp_path), *AGAINST_BASELINE, *CONFIG)

    assert breaking.returncode != 0
    assert '"truncate"' in breaking.stdout


def _image(protos: Path, folder: Path) -> Path:
    image = folder / "image.binpb"
    made = run(sys.executable, protos / "generate.py", "--image", image)
    assert made.returncode == 0, made.stderr
    return image
