"""LlamaIndex' clients of OpenAI-compatible servers and of text-embeddings-inference."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

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


NAMES = ("llama-index-embeddings-openai-like", "llama-index-embeddings-text-embeddings-inference")
TEXTS = ["a cat", "a cup of coffee"]

openai_like = OpenAILikeEmbedding(model_name="mini", api_base=f"{HTTP}/v1", api_key="unused")
inference = TextEmbeddingsInference(
    model_name="mini", base_url=HTTP, query_instruction="", text_instruction=""
)


def texts(client: OpenAILikeEmbedding | TextEmbeddingsInference) -> str:
    return compared(client.get_text_embedding_batch(TEXTS), [GOLDEN["texts"][text] for text in TEXTS])


print(json.dumps({"client": "llama-index", "versions": {name: version(name) for name in NAMES}}), flush=True)
check("texts by OpenAILikeEmbedding", lambda: texts(openai_like))
check("texts by TextEmbeddingsInference", lambda: texts(inference))
