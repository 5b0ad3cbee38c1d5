"""Batch sizes that were measured once serve the next start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from alignserve_server.serving.tuned_sizes import TunedSizes, cpu_model
from structlog.testing import capture_logs

LIMITS = {"image": 32, "text": 32}
FACTS = {"cores": 2, "gpu": None}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """By the next start of the same model on the same machine, in a folder that is made."""
    TunedSizes(tmp_path / "new" / "tuning", "a model", FACTS).write({"image": 2, "text": 8})

    assert TunedSizes(tmp_path / "new" / "tuning", "a model", FACTS).read(LIMITS) == {"image": 2, "text": 8}


@pytest.mark.parametrize(
    ("fingerprint", "facts"),
    [("another model", FACTS), ("a model", {**FACTS, "cores": 4}), ("a model", {"cores": 2})],
    ids=["model", "cores", "fewer facts"],
)
def test_another_model_or_machine_has_sizes_of_its_own(
    tmp_path: Path, fingerprint: str, facts: dict[str, int | None]
) -> None:
    """A cache folder may be shared by both."""
    TunedSizes(tmp_path, "a model", FACTS).write({"image": 2, "text": 8})

    assert TunedSizes(tmp_path, fingerprint, facts).read(LIMITS) == {}


def test_only_what_is_asked_for_and_within_its_limit_is_read(tmp_path: Path) -> None:
    """A size that is used as given is not, nor one beyond the limit."""
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
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: object) -> None:
    """The start measures again."""
    sizes = TunedSizes(tmp_path, "a model", FACTS)
    sizes.write({"text": 8})
    (file,) = tmp_path.iterdir()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), "max_batch_size": content}))

    assert sizes.read(LIMITS) == {}


def test_a_folder_that_cannot_be_written_is_logged(tmp_path: Path) -> None:
    """And nothing else happens."""
    (tmp_path / "file").write_text("")
    with capture_logs() as lines:
        TunedSizes(tmp_path / "file" / "tuning", "a model", FACTS).write({"text": 8})

    (line,) = lines
    assert (line["event"], line["log_level"]) == ("batch_sizes_not_saved", "warning")
    assert "Not a directory" in line["reason"]


def test_a_file_is_replaced_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """Whoever reads meanwhile gets the old one or the new one."""
    sizes = TunedSizes(tmp_path, "a model", FACTS)
    for size in (2, 4):
        sizes.write({"text": size})

    assert len(list(tmp_path.iterdir())) == 1
    assert sizes.read(LIMITS) == {"text": 4}


def test_the_processor_has_a_name() -> None:
    """One model's sizes differ from processor to processor."""
    assert cpu_model()


@pytest.mark.parametrize("kind", ["pipe", "terabyte", "folder"])
def test_what_is_no_file_of_sizes_holds_no_start(kind: str, tmp_path: Path) -> None:
    """Whatever lies at its place, the sizes are measured, and nothing waits or fills the memory."""
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
