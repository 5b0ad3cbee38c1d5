"""What Weaviate's module multi2vec-clip sends: no content-type, null for an empty list."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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


def call(method: str, path: str, body: str | None = None) -> tuple[int, Any]:
    connection = HTTPConnection(urlsplit(HTTP).netloc)
    connection.request(method, path, body)
    answer = connection.getresponse()
    content = answer.read()
    return answer.status, json.loads(content) if content else None


def probes() -> str:
    statuses = [call("GET", f"/.well-known/{name}")[0] for name in ("ready", "live")]
    assert statuses == [204, 204], statuses
    return "204 from both"


def texts() -> str:
    status, answer = call("POST", "/vectorize", '{"texts":["a cat"],"images":null}')
    assert (status, answer["imageVectors"]) == (200, [])
    return compared(answer["textVectors"], [GOLDEN["texts"]["a cat"]])


def images() -> str:
    body = json.dumps({"texts": None, "images": [base64.b64encode(PHOTO).decode()]})
    status, answer = call("POST", "/vectorize", body)
    assert (status, answer["textVectors"]) == (200, [])
    return compared(answer["imageVectors"], [GOLDEN["images"]["cat.jpg"]])


def refused() -> str:
    status, answer = call("POST", "/vectorize", '{"texts":["a cat"],"images":["!"]}')
    assert status == 400
    return str(answer["error"])


print(json.dumps({"client": "Weaviate multi2vec-clip (its requests)", "versions": {}}), flush=True)
check("ready and live", probes)
check("metadata", lambda: str(call("GET", "/meta")[1]["model"]))
check("texts", texts)
check("images", images)
check("an error is in the field that is read", refused)
