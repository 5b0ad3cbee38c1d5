"""LangChain's OpenAIEmbeddings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from langchain_openai import OpenAIEmbeddings

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


# Otherwise LangChain sends tokens of OpenAI's vocabulary, which it downloads first.
embeddings = OpenAIEmbeddings(
    model="mini", base_url=f"{HTTP}/v1", api_key="unused", check_embedding_ctx_length=False
)


def many() -> str:
    found = embeddings.embed_documents(["a cat", *(f"photo {number}" for number in range(1500))])
    assert len(found) == 1501
    return compared(found[:1], [GOLDEN["texts"]["a cat"]])


print(
    json.dumps({"client": "langchain-openai", "versions": {"langchain-openai": version("langchain-openai")}}),
    flush=True,
)
check("a query", lambda: compared([embeddings.embed_query("a cat")], [GOLDEN["texts"]["a cat"]]))
check("1,501 documents", many)
