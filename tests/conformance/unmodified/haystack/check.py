"""Haystack's OpenAI embedders."""

from __future__ import annotations

import json
import os
from importlib.metadata import version

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from reporting import GOLDEN, HTTP, check, compared

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
