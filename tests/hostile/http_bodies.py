"""The bodies that take a server longest, for their size: what JSON and its neighbours allow."""

from __future__ import annotations

import gzip
import json
import os
from base64 import b64encode
from collections.abc import Callable, Mapping

_SIZE = 15 << 20
_TEXTS, _IMAGES, _CLASSIFY = "EmbedText", "EmbedImage", "Classify"

JSON = "application/json"
GRPC_WEB_TEXT = "application/grpc-web-text"


def _text(content: bytes) -> bytes:
    return b'{"texts":["' + content + b'"]}'


def _classify() -> bytes:
    labels = [f"label {number} {'x' * 100}" for number in range(1000)]
    return json.dumps({"images": [{"content": "YQ=="}] * 32, "labels": labels}).encode()


# By name: the method, the headers, and what makes the body.
WORST: Mapping[str, tuple[str, dict[str, str], Callable[[], bytes]]] = {
    "numbers": (_TEXTS, {}, lambda: b'{"texts":[' + b"1," * (_SIZE // 2) + b"1]}"),
    "brackets": (_TEXTS, {}, lambda: b"[" * (_SIZE // 2) + b"]" * (_SIZE // 2)),
    "empty lists": (_TEXTS, {}, lambda: b"[" + b"[]," * (_SIZE // 3) + b"1]"),
    "as many values as are let in": (_TEXTS, {}, lambda: b'{"a":[' + b'{"a":1},' * 40_000 + b"1]}"),
    "escapes": (_TEXTS, {}, lambda: _text(rb"\u4e2d" * (_SIZE // 6))),
    "as many escapes as are let in": (_TEXTS, {}, lambda: _text(rb"\u4e2d" * 1_000_000)),
    "digits": (_TEXTS, {}, lambda: b'{"top_k":' + b"1" * _SIZE + b"}"),
    "one text": (_TEXTS, {}, lambda: _text(b"a" * _SIZE)),
    "one text with an emoji": (_TEXTS, {}, lambda: _text(b"a" * _SIZE + "😀".encode())),
    "spaces": (_TEXTS, {}, lambda: b" " * _SIZE + b"{}"),
    "one image": (
        _IMAGES,
        {},
        lambda: b'{"images":[{"content":"' + b64encode(os.urandom(10_000_000)) + b'"}]}',
    ),
    "one image, base64 as a whole": (
        _IMAGES,
        {"content-type": GRPC_WEB_TEXT},
        lambda: b64encode(b"\0" + (11_000_000).to_bytes(4, "big") + os.urandom(11_000_000)),
    ),
    "base64 of one byte, a million times": (
        _TEXTS,
        {"content-type": GRPC_WEB_TEXT},
        lambda: b"AA==" * (_SIZE // 4),
    ),
    "gzip bomb": (
        _TEXTS,
        {"content-encoding": "gzip"},
        lambda: gzip.compress(_text(b"a" * (_SIZE - 20))),
    ),
    "answer of megabytes": (_CLASSIFY, {}, _classify),
}


def request_of(name: str) -> tuple[str, dict[str, str], bytes]:
    """Returns the path, the headers and the body."""
    method, headers, make = WORST[name]
    return f"/alignserve.v1.AlignService/{method}", {"content-type": JSON, **headers}, make()
