"""Measured batch sizes are saved for the next start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from alignserve_server.serving.tuned_sizes import TunedSizes, cpu_model
from structlog.testing import capture_logs

LIMITS = {"image": 32, "text": 32}
FACTS = {"cores": 2, "gpu": None}


def test_saved_sizes_can_be_read(tmp_path: Path) -> None:
    """The next start of the same model on the same machine reads them; the folder is created."""
    TunedSizes(tmp_path / "new" / "tuning", "a model", FACTS).write({"image": 2, "text": 8})

    assert TunedSizes(tmp_path / "new" / "tuning", "a model", FACTS).read(LIMITS) == {"image": 2, "text": 8}


def test_saved_overheads_can_be_read(tmp_path: Path) -> None:
    """The fixed cost of a batch is measured together with the sizes."""
    TunedSizes(tmp_path, "a model", FACTS).write({"text": 8}, {"text": 1300})

    assert TunedSizes(tmp_path, "a model", FACTS).read_overheads({"text": 5000}) == {"text": 1300}


@pytest.mark.parametrize(
    ("fingerprint", "facts"),
    [("another model", FACTS), ("a model", {**FACTS, "cores": 4}), ("a model", {"cores": 2})],
    ids=["model", "cores", "fewer facts"],
)
def test_another_model_or_machine_has_its_own_sizes(
    tmp_path: Path, fingerprint: str, facts: dict[str, int | None]
) -> None:
    """They may share a cache folder."""
    TunedSizes(tmp_path, "a model", FACTS).write({"image": 2, "text": 8})

    assert TunedSizes(tmp_path, fingerprint, facts).read(LIMITS) == {}


def test_only_sizes_within_given_limits_are_read(tmp_path: Path) -> None:
    """A size that is used as given is not read, and neither is one above its limit."""
    sizes = TunedSizes(tmp_path, "a model", FACTS)
    sizes.write({"image": 64, "text": 8})

    assert [sizes.read({"text": 32}), sizes.read({"image": 32})] == [{"text": 8}, {}]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"[" * 100_000,
        b'{"facts": {}, "max_batch_size": {"text": 8}}',
        "facts",
        {"text": "8"},
        {"text": True},
        {"text": 0},
        {"text": -4},
        {"text": 1e9},
        {"text": None},
        [8],
        None,
    ],
    ids=repr,
)
def test_a_damaged_file_is_ignored(tmp_path: Path, content: object) -> None:
    """The next start measures again."""
    sizes = TunedSizes(tmp_path, "a model", FACTS)
    sizes.write({"text": 8})
    (file,) = tmp_path.iterdir()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), "max_batch_size": content}))

    assert sizes.read(LIMITS) == {}


def test_a_folder_that_is_not_writable_is_logged(tmp_path: Path) -> None:
    """Nothing else happens."""
    (tmp_path / "file").write_text("")
    with capture_logs() as lines:
        TunedSizes(tmp_path / "file" / "tuning", "a model", FACTS).write({"text": 8})

    (line,) = lines
    assert (line["event"], line["log_level"]) == ("batch_sizes_not_saved", "warning")
    assert "Not a directory" in line["reason"]


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    """Readers get either the old content or the new one, and no temporary file is left."""
    sizes = TunedSizes(tmp_path, "a model", FACTS)
    for size in (2, 4):
        sizes.write({"text": size})

    assert len(list(tmp_path.iterdir())) == 1
    assert sizes.read(LIMITS) == {"text": 4}


def test_the_processor_has_a_name() -> None:
    """The name is needed because the best sizes differ between processors."""
    assert cpu_model()


@pytest.mark.parametrize("kind", ["pipe", "terabyte", "folder"])
def test_an_unusual_file_does_not_prevent_a_start(kind: str, tmp_path: Path) -> None:
    """Whatever it is, the sizes are measured, and reading it neither blocks nor fills the memory."""
    sizes = TunedSizes(tmp_path, "a model", FACTS)
    sizes.write({"image": 2, "text": 8})
    (place,) = tmp_path.iterdir()
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        with place.open("wb") as file:
            file.truncate(1 << 40)

    assert sizes.read(LIMITS) == {}
