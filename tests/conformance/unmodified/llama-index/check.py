"""LlamaIndex' clients of OpenAI-compatible servers and of text-embeddings-inference."""

from __future__ import annotations

import json
from importlib.metadata import version

from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from reporting import GOLDEN, HTTP, check, compared

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
