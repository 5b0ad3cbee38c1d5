"""Cohere's client, version 2 of the API."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cohere

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


client = cohere.ClientV2(api_key="unused", base_url=HTTP)


def texts() -> str:
    answer = client.embed(
        model="mini", texts=["a cat"], input_type="search_query", embedding_types=["float", "int8", "ubinary"]
    )
    expected = GOLDEN["texts"]["a cat"]
    (bits,) = answer.embeddings.ubinary
    signs = [byte >> 7 - bit & 1 for byte in bits for bit in range(8)]
    assert all(
        bool(sign) == (value > 0) for sign, value in zip(signs, expected, strict=True) if abs(value) > 1e-4
    )
    (integers,) = answer.embeddings.int8
    assert max(map(abs, integers)) == 127
    return compared(answer.embeddings.float_, [expected])


def images() -> str:
    uri = "data:image/jpeg;base64," + base64.b64encode(PHOTO).decode()
    answer = client.embed(model="mini", images=[uri], input_type="image", embedding_types=["float"])
    return compared(answer.embeddings.float_, [GOLDEN["images"]["cat.jpg"]])


def refused() -> str:
    try:
        client.embed(model="mini", texts=["a cat", " "], input_type="search_query")
    except cohere.BadRequestError as error:
        assert "texts[1]" in str(error.body)
        return str(error.body)
    raise AssertionError("not refused")


print(json.dumps({"client": "cohere", "versions": {"cohere": version("cohere")}}), flush=True)
check("texts as float, int8 and ubinary", texts)
check("images", images)
check("an error names the input", refused)
