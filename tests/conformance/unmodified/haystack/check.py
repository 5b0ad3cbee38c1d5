"""Haystack's OpenAI embedders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret

GOLDEN = json.loads(Path(os.environ["ALIGNSERVE_GOLDEN"]).read_text())
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


OPTIONS = {"model": "mini", "api_base_url": f"{HTTP}/v1", "api_key": Secret.from_token("unused")}


def text() -> str:
    return compared([OpenAITextEmbedder(**OPTIONS).run("a cat")["embedding"]], [GOLDEN["texts"]["a cat"]])


def documents() -> str:
    texts = ["a cat", "a cup of coffee"]
    found = OpenAIDocumentEmbedder(**OPTIONS, progress_bar=False).run(
        [Document(content=each) for each in texts]
    )
    return compared(
        [each.embedding for each in found["documents"]], [GOLDEN["texts"][each] for each in texts]
    )


os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
print(json.dumps({"client": "haystack", "versions": {"haystack-ai": version("haystack-ai")}}), flush=True)
check("a text", text)
check("documents", documents)
