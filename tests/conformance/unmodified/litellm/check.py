"""LiteLLM as a client of an OpenAI-compatible server."""

from __future__ import annotations

import base64
import json
from importlib.metadata import version

import litellm
from reporting import GOLDEN, HTTP, PHOTO, check, compared


def embedded(*inputs: str) -> list[list[float]]:
    answer = litellm.embedding(
        model="openai/mini", input=list(inputs), api_base=f"{HTTP}/v1", api_key="unused"
    )
    return [each["embedding"] for each in answer.data]


def mixed() -> str:
    found = embedded("a cat", "data:image/jpeg;base64," + base64.b64encode(PHOTO).decode())
    return compared(found, [GOLDEN["texts"]["a cat"], GOLDEN["images"]["cat.jpg"]])


def refused() -> str:
    try:
        embedded("a cat", " ")
    except litellm.BadRequestError as error:
        assert "input[1]" in str(error)
        return str(error)[:200]
    raise AssertionError("not refused")


print(json.dumps({"client": "litellm", "versions": {"litellm": version("litellm")}}), flush=True)
check("texts", lambda: compared(embedded("a cat"), [GOLDEN["texts"]["a cat"]]))
check("texts and images in one call", mixed)
check("an error names the input", refused)
