"""What the Python scripts here share: what they are given, and how they print their checks.

It needs only the standard library, since each script runs in an environment of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

GOLDEN = json.loads(Path(os.environ["ALIGNSERVE_GOLDEN"]).read_text("utf-8"))
PHOTO = (Path(os.environ["ALIGNSERVE_PHOTOS"]) / "cat.jpg").read_bytes()
HTTP = os.environ["ALIGNSERVE_HTTP"]


def check(name: str, run: Callable[[], str]) -> None:
    """Runs a check, and prints whether it raised."""
    try:
        outcome = {"ok": True, "detail": run()}
    except Exception as error:
        outcome = {"ok": False, "detail": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps({"check": name, **outcome}), flush=True)


def compared(found: list[list[float]], expected: list[list[float]]) -> str:
    """Returns a text for people if the vectors are the expected ones; raises `AssertionError` if not."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other)
        assert all(abs(a - b) <= 1e-4 for a, b in zip(one, other, strict=True)), "other numbers"
    return f"{len(found)} of {len(found[0])} numbers, as expected"
