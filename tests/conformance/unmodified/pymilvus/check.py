"""What Milvus' embedding functions send to text-embeddings-inference and to OpenAI."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

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
