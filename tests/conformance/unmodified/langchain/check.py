"""LangChain's OpenAIEmbeddings."""

from __future__ import annotations

import json
from importlib.metadata import version

from langchain_openai import OpenAIEmbeddings
from reporting import GOLDEN, HTTP, check, compared

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
