"""What Weaviate's module multi2vec-clip sends: no content-type, null for an empty list."""

from __future__ import annotations

import base64
import json
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from reporting import GOLDEN, HTTP, PHOTO, check, compared


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
