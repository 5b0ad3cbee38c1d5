"""The embedded checkpoint, its prepared form and the golden vectors belong together, and to the recipe."""

from __future__ import annotations

import json
import re

import pytest

from deploy.docs.pages import ROOT
from server.recipes.mini import install
from server.recipes.mini.digests import file_digest

_AGAIN = "run `python -m server.recipes.mini --install`"


@pytest.mark.parametrize("name", ["recipe", "checkpoint", "prepared", "golden"])
def test_nothing_is_stale(name: str) -> None:
    """The digests are those that the last rebuild recorded."""
    made = json.loads(install.MADE.read_text("utf-8"))

    assert install.digests()[name] == made[name], f"{name} changed after the rebuild; {_AGAIN}"


@pytest.mark.parametrize("page", ["server/docs/check.md", "client/docs/vectors.md"])
def test_pages_show_the_fingerprint_of_this_checkpoint(page: str) -> None:
    """What commands printed for an earlier one is stale; run them again."""
    prepared = json.loads((install.CHECKPOINT / "prepared" / "prepared.json").read_text("utf-8"))

    found = re.findall(r"\b[0-9a-f]{32}\b", (ROOT / page).read_text("utf-8"))

    assert set(found) == {prepared["fingerprints"]["float32"]}


def test_the_page_about_check_shows_these_weights() -> None:
    """By their digest."""
    weights = install.CHECKPOINT / "model.safetensors"

    page = (ROOT / "server" / "docs" / "check.md").read_text("utf-8")

    assert f"SHA-256 of {weights.name} {file_digest(weights)}" in page
