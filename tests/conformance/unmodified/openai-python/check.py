"""OpenAI's Python client: texts and images, the model's name, errors, retries and keys."""

from __future__ import annotations

import base64
import json
import os
import platform
import ssl
from pathlib import Path

import numpy as np
import openai
from reporting import GOLDEN, HTTP, check

PHOTO = Path(os.environ["ALIGNSERVE_PHOTOS"]) / "cat.jpg"
URI = "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()

client = openai.OpenAI(base_url=f"{HTTP}/v1", api_key="unused")
MODEL = client.models.list().data[0].id


def compared(found: list[list[float]], expected: list[list[float]]) -> str:
    np.testing.assert_allclose(found, expected, atol=1e-4)
    return f"{len(found)} of {len(found[0])} numbers, as expected"


def texts(encoding: str | None) -> str:
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model=MODEL, input=["a cat", "a cup of coffee"], **options)
    assert answer.usage.prompt_tokens > 4
    assert [each.index for each in answer.data] == [0, 1]
    return compared(
        [each.embedding for each in answer.data],
        [GOLDEN["texts"]["a cat"], GOLDEN["texts"]["a cup of coffee"]],
    )


def mixed() -> str:
    answer = client.embeddings.create(model=MODEL, input=["a cat", URI])
    return compared(
        [each.embedding for each in answer.data], [GOLDEN["texts"]["a cat"], GOLDEN["images"]["cat.jpg"]]
    )


def messages() -> str:
    content = [{"type": "image_url", "image_url": {"url": URI}}]
    answer = client.post(
        "/embeddings",
        cast_to=openai.types.CreateEmbeddingResponse,
        body={"model": MODEL, "messages": [{"role": "user", "content": content}], "encoding_format": "float"},
    )
    return compared([answer.data[0].embedding], [GOLDEN["images"]["cat.jpg"]])


def thousands() -> str:
    answer = client.embeddings.create(model=MODEL, input=[f"photo {number}" for number in range(2048)])
    assert [each.index for each in answer.data] == list(range(2048))
    return "2048 inputs in order"


def refused() -> str:
    try:
        client.embeddings.create(model=MODEL, input=["a cat", " "])
    except openai.BadRequestError as error:
        assert (error.param, error.code) == ("input[1]", "text_empty"), (error.param, error.code)
        assert error.request_id
        return f"{error.status_code} {error.code} at {error.param}"
    raise AssertionError("not refused")


def unknown_model() -> str:
    try:
        client.embeddings.create(model="text-embedding-3-small", input="a cat")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
        return error.message
    raise AssertionError("not refused")


def key_over_tls() -> str:
    verified = ssl.create_default_context(cafile=os.environ["ALIGNSERVE_CA"])
    options = {"base_url": f"{os.environ['ALIGNSERVE_TLS_HTTP']}/v1", "max_retries": 0}
    with openai.DefaultHttpxClient(verify=verified) as transport:
        secure = openai.OpenAI(api_key=os.environ["ALIGNSERVE_KEY"], http_client=transport, **options)
        assert secure.embeddings.create(model=MODEL, input="a cat").data
        try:
            openai.OpenAI(api_key="wrong", http_client=transport, **options).models.list()
        except openai.AuthenticationError as error:
            return f"with the key; without it {error.status_code} {error.code}"
    raise AssertionError("a wrong key is not refused")


print(
    json.dumps(
        {
            "client": "openai (Python)",
            "versions": {"openai": openai.__version__, "python": platform.python_version()},
        }
    ),
    flush=True,
)
check("texts, base64 by default", lambda: texts(None))
check("texts as floats", lambda: texts("float"))
check("texts and images in one call", mixed)
check("an image in a chat message", messages)
check("2,048 inputs in one call", thousands)
check("an error names the input", refused)
check("another model is not found", unknown_model)
check("the model by its id", lambda: client.models.retrieve(MODEL).id)
check("a key over TLS", key_over_tls)
