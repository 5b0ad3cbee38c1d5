"""`alignserve-server plan` measures a model and everything around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import BIN, run


@pytest.mark.long
def test_what_is_measured_can_be_saved_and_used_again(tmp_path: Path) -> None:
    """The fake model's saved measurement gives the same plan as the measurement itself."""
    file = tmp_path / "curve.json"
    command = (BIN / "alignserve-server", "plan", "--json", "--p99", "1", "--calls", "1000")
    flags = ("--max-batch-size", "2", "--replicas", "1", "--front-processes", "1")

    measured = run(*command, *flags, "--checkpoint", "fake", "--image-size", "64x64", "--save", file)
    again = run(*command, *flags, "--curve", file)

    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["model"] == "fake, fake, float32, cpu"
    assert again.stdout == measured.stdout
