"""The list of photographs, and the notice that credits them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from server.recipes.mini import calibration, measure, notice, photo_list
from server.recipes.mini.notice import Credit

_SOURCE = {
    "id": "museum",
    "name": "museum/photos",
    "commit": "0123456789abcdef",
    "licence": "CC0-1.0",
    "title": "Museum",
    "pictures": [
        {
            "path": "in/dog.jpg",
            "sha256": hashlib.sha256(b"dog").hexdigest(),
            "split": "train",
            "captions": ["a dog"],
            "nouns": ["dog", "animal"],
            "credit": "Ann",
        },
        {"path": "cat.jpg", "sha256": "0", "split": "held-out", "captions": ["a cat"], "nouns": ["cat"]},
    ],
}


@pytest.fixture
def listed(tmp_path: Path) -> list[photo_list.Listed]:
    """One photograph that trains; the other is kept for questions."""
    path = tmp_path / "sources.json"
    path.write_text(json.dumps({"version": 1, "sources": [_SOURCE]}), "utf-8")
    return photo_list.read(path)


def test_photographs_kept_for_questions_are_not_listed(listed: list[photo_list.Listed]) -> None:
    """They must never train or calibrate."""
    assert [each.photo.file for each in listed] == ["museum/in/dog.jpg"]
    assert listed[0].photo.nouns == ("dog", "animal")


def test_a_missing_photograph_says_how_to_fetch_it(listed: list[photo_list.Listed], tmp_path: Path) -> None:
    """It may have been deleted since the run began."""
    with pytest.raises(FileNotFoundError, match=r"dog.jpg is missing; fetch it: python -m .*photos /"):
        photo_list.verify(listed[0], tmp_path)


def test_another_file_than_the_listed_one_is_refused(listed: list[photo_list.Listed], tmp_path: Path) -> None:
    """The digest decides."""
    path = tmp_path / "museum" / "in" / "dog.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"dog")
    photo_list.verify(listed[0], tmp_path)

    path.write_bytes(b"cat")
    with pytest.raises(ValueError, match=r"museum/in/dog.jpg has SHA-256"):
        photo_list.verify(listed[0], tmp_path)


def test_the_notice_lists_photographs_by_licence(listed: list[photo_list.Listed]) -> None:
    """Each with its author and where it is from."""
    others = [Credit(title, "Bo", "CC-BY-2.0", "elsewhere") for title in ("x.jpg", "y.jpg")]
    credits_of_photos = [listed[0].credit, *others]

    text = notice.written("Photographs\n{photographs}\n", credits_of_photos)

    assert text == (
        "Photographs\n"
        "  CC-BY-2.0\n"
        "    Bo: 2 photographs from elsewhere\n"
        "  CC0-1.0\n"
        "    Ann: dog.jpg from museum/photos at 0123456789ab\n"
    )


def test_the_page_counts_what_the_lists_have() -> None:
    """Photographs come and go; the page's numbers must follow."""
    sources = json.loads(photo_list.SOURCES.read_text("utf-8"))["sources"]
    held = sum(picture["split"] != "train" for source in sources for picture in source["pictures"])
    training = sum(any(picture["split"] == "train" for picture in source["pictures"]) for source in sources)
    listed = photo_list.read()
    withheld = sum(each.photo.is_withheld for each in listed)
    setting, measuring = (
        [json.loads(line)["image"] for line in path.read_text("utf-8").splitlines()]
        for path in (calibration.QUESTIONS, measure.QUESTIONS)
    )

    page = " ".join(photo_list.SOURCES.with_name("SOURCES.md").read_text("utf-8").split())

    assert f"{len(listed):,} photographs of {training} sources train" in page
    assert f"leaves out {withheld:,} of them" in page
    assert f"`calibration.jsonl` asks {len(setting)} questions about {len(set(setting))} of these" in page
    assert f"{held} photographs more are held out" in page
    assert f"`questions.jsonl` asks {len(measuring)} questions about {len(set(measuring))} of them" in page


def test_the_template_has_a_place_for_photographs() -> None:
    """And the licences that must be kept."""
    template = notice.template()

    assert template.count("{photographs}") == 1
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in template
