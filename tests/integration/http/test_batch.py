"""`alignserve batch` answers a body over gRPC as `POST /v1/embeddings` answers it over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignserve.cli import main

from tests.integration.http.dialects import IMAGE_URI
from tests.integration.http.ports import Shared, in_module_loop
from tests.integration.http.test_openai import FORMS, REFUSED

MORE: list[dict[str, Any]] = [
    {"input": "a", "model": "FAKE", "encoding_format": "base64", "user": "somebody"},
    {"input": "a", "embedding_type": "base64", "normalize": False},
    {"input": ["w " * 100, IMAGE_URI], "truncate": "END", "normalized": False},
    {"input": "w " * 100, "truncate_prompt_tokens": -1.0},
    {"input": "a", "dimensions": 8.5},
    {"input": "a", "dimensions": True},
    {"input": "a", "dimensions": 1e300},
    {"input": "a", "model": 7},
    {"input": "a", "model": "x" * 100},
    {"input": "a", "output_dtype": "int8"},
    {"input": "a", "late_chunking": True},
    {"input": "a", "truncate": 1},
    {"input": "a", "normalize": "no"},
    {"input": ["a"] * 2048},
    {"input": ["a"] * 2049},
    {"input": [f"text {number} {' ' * (number % 3)}" if number % 50 else " " for number in range(200)]},
    {"input": [" ", IMAGE_URI, "data:image/png;base64,a"]},
    {"input": "data:image/png;base64,cGlj dHVy%0AZQ=="},
    {"input": " DATA:image/png;base64,cGljdHVyZQ"},
    {"input": "data:a comma, in prose"},
    {"input": {"image": "cGljdHVyZQ=="}},
    {"input": {"image": "cGlj=dHVyZQ=="}},
    {"input": {"image": "c-_jdHVyZQ"}},
    {"input": {"image_url": {}}},
    {"input": {"content": []}},
    {"input": {"content": "a cat"}},
    {"input": {"content": [{"text": "a"}, {"text": "b"}]}},
    {"messages": [1]},
    {"messages": "a"},
]


@in_module_loop
@pytest.mark.long
async def test_a_batch_and_http_agree_on_every_form(shared: Shared, tmp_path: Path) -> None:
    """Status, error and usage are the same, and so are the embeddings but for rounding."""
    served, client = shared
    bodies = [*(body for body, _ in FORMS), *(body for body, *_ in REFUSED), *MORE]
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with requests.open("w") as file:
        for number, body in enumerate(bodies):
            whole = {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings", "body": body}
            file.write(json.dumps(whole) + "\n")

    arguments = ["--server", f"127.0.0.1:{served.server.port}", "batch", str(requests), str(out)]
    await asyncio.to_thread(main, arguments)

    for body, line in zip(bodies, out.read_text().splitlines(), strict=True):
        answer = await client.post("/v1/embeddings", json=body)
        response = json.loads(line)["response"]
        assert response["status_code"] == answer.status_code, body
        _check_agrees(response["body"], answer.json(), body)


def _check_agrees(batch: dict[str, Any], http: dict[str, Any], body: object) -> None:
    if "error" in http:
        assert batch == http, body
        return
    data = batch.pop("data"), http.pop("data")
    assert batch == http
    for one, other in zip(*data, strict=True):
        vectors = one.pop("embedding"), other.pop("embedding")
        assert one == other
        if isinstance(vectors[0], str):
            assert vectors[0] == vectors[1]
        else:
            np.testing.assert_allclose(*vectors, rtol=1e-6)
