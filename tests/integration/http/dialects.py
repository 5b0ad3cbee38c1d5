"""What tests know about each dialect: a request that succeeds, and how its errors are read."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

IMAGE = base64.b64encode(b"picture").decode()
IMAGE_URI = f"data:image/png;base64,{IMAGE}"


@dataclass(frozen=True)
class KnownDialect:
    """A dialect.

    Attributes:
        name: Its name in metrics.
        path: A path that takes POST.
        body: A body that succeeds there, with one text or image.
        unknown: A path that is not served and belongs to the dialect.
        is_read: Checks the shape of an error, and returns its message.
        reason: Returns the reason in an error, in upper case.
    """

    name: str
    path: str
    body: dict[str, Any]
    unknown: str
    message_of: Callable[[Any], str]
    reason_of: Callable[[Any], str]


def _openai_message(error: Any) -> str:
    assert error.keys() == {"error"}
    assert error["error"].keys() == {"message", "type", "param", "code"}
    assert error["error"]["type"].endswith("_error")
    return str(error["error"]["message"])


def _huggingface_message(error: Any) -> str:
    assert error.keys() - {"estimated_time"} == {"error", "error_type"}
    return str(error["error"])


def _tei_message(error: Any) -> str:
    assert error.keys() == {"error", "error_type", "reason"}
    assert error["error_type"] in {"Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"}
    return str(error["error"])


def _cohere_message(error: Any) -> str:
    assert error.keys() == {"id", "message", "reason"}
    return str(error["message"])


def _weaviate_message(error: Any) -> str:
    assert error.keys() == {"error", "reason"}
    return str(error["error"])


DIALECTS = [
    KnownDialect(
        "openai",
        "/v1/embeddings",
        {"input": "a cat"},
        "/v1/completions",
        _openai_message,
        lambda error: error["error"]["code"].upper(),
    ),
    KnownDialect(
        "huggingface",
        "/",
        {"inputs": "a cat"},
        "/pipeline/",
        _huggingface_message,
        lambda error: error["error_type"],
    ),
    KnownDialect(
        "tei", "/embed", {"inputs": "a cat"}, "/embed_all", _tei_message, lambda error: error["reason"]
    ),
    KnownDialect(
        "cohere",
        "/v2/embed",
        {"texts": ["a cat"]},
        "/v2/chat",
        _cohere_message,
        lambda error: error["reason"],
    ),
    KnownDialect(
        "weaviate",
        "/vectorize",
        {"texts": ["a cat"]},
        "/.well-known/nothing",
        _weaviate_message,
        lambda error: error["reason"],
    ),
]


def read_error(dialect: KnownDialect, answer: httpx.Response) -> tuple[int, str]:
    """Checks the shape of an error; returns its status and reason."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert answer.headers["x-should-retry"] in ("true", "false")
    error = answer.json()
    message = dialect.message_of(error)
    assert 0 < len(message) < 1000
    return answer.status_code, dialect.reason_of(error)
