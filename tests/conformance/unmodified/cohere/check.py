"""Cohere's client, version 2 of the API."""

from __future__ import annotations

import base64
import json
from importlib.metadata import version

import cohere
from reporting import GOLDEN, HTTP, PHOTO, check, compared

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
