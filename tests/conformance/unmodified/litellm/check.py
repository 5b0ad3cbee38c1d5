"""LiteLLM as a client of an OpenAI-compatible server."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import litellm

GOLDEN = json.loads(Path(os.environ["ALIGNSERVE_GOLDEN"]).read_text())
PHOTO = (Path(os.environ["ALIGNSERVE_PHOTOS"]) / "cat.jpg").read_bytes()
HTTP = os.environ["ALIGNSERVE_HTTP"]


def check(name: str, run: Callable[[], str]) -> None:
    try:
        outcome = {"ok": True, "detail": run()}
    except Exception as error:
        outcome = {"ok": False, "detail": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps({"check": name, **outcome}), flush=True)


def compared(found: list[list[float]], expected: list[list[float]]) -> str:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other)
        assert all(abs(a - b) <= 1e-4 for a, b in zip(one, other, strict=True)), "other numbers"
    return f"{len(found)} of {len(found[0])} numbers, as expected"


def embedded(*inputs: str) -> list[list[float]]:
    answer = litellm.embedding(
        model="openai/mini", input=list(inputs), api_base=f"{HTTP}/v1", api_key="unused"
    )
    return [each["embedding"] for each in answer.data]


def mixed() -> str:
    found = embedded("a cat", "data:image/jpeg;base64," + base64.b64encode(PHOTO).decode())
    return compared(found, [GOLDEN["texts"]["a cat"], GOLDEN["images"]["cat.jpg"]])


def refused() -> str:
    try:
        embedded("a cat", " ")
    except litellm.BadRequestError as error:
        assert "input[1]" in str(error)
        return str(error)[:200]
    raise AssertionError("not refused")


print(json.dumps({"client": "litellm", "versions": {"litellm": version("litellm")}}), flush=True)
check("texts", lambda: compared(embedded("a cat"), [GOLDEN["texts"]["a cat"]]))
check("texts and images in one call", mixed)
check("an error names the input", refused)
