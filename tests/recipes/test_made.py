"""The embedded checkpoint, its prepared form and the golden vectors belong together, and to the recipe."""

from __future__ import annotations

import json

import pytest

from server.recipes.mini import install

_AGAIN = "run `python -m server.recipes.mini --install`"


@pytest.mark.parametrize("name", ["recipe", "checkpoint", "prepared", "golden"])
def test_nothing_is_stale(name: str) -> None:
    """The digests are those that the last rebuild recorded."""
    made = json.loads(install.MADE.read_text("utf-8"))

    assert install.digests()[name] == made[name], f"{name} changed after the rebuild; {_AGAIN}"
