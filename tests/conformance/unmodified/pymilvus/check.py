"""What Milvus' embedding functions send to text-embeddings-inference and to OpenAI."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen

from reporting import GOLDEN, HTTP, check, compared


def post(path: str, body: str) -> Any:
    request = Request(f"{HTTP}{path}", body.encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


def inference() -> str:
    body = '{"inputs":["a cat"],"truncate":true,"truncation_direction":"Right","prompt_name":null}'
    return compared(post("/embed", body), [GOLDEN["texts"]["a cat"]])


def compatible() -> str:
    answer = post("/v1/embeddings", '{"input":["a cat"]}')
    return compared([each["embedding"] for each in answer["data"]], [GOLDEN["texts"]["a cat"]])


print(json.dumps({"client": "Milvus (its requests)", "versions": {}}), flush=True)
check("text-embeddings-inference", inference)
check("OpenAI without a model", compatible)
