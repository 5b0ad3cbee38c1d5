"""buf curl: gRPC, gRPC-Web and Connect, with reflection and with the protos of this repository."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

_BUF = Path(sys.executable).parent / "buf"
_SERVICE = "alignserve.v1.AlignService"
_PROTOS = os.environ["ALIGNSERVE_PROTOS"]
_GRPC = f"http://{os.environ['ALIGNSERVE_TARGET']}"
_TLS_GRPC = f"https://{os.environ['ALIGNSERVE_TLS_TARGET']}"
_HTTP, _TLS_HTTP = os.environ["ALIGNSERVE_HTTP"], os.environ["ALIGNSERVE_TLS_HTTP"]
_OVER_GRPC = ("--protocol", "grpc", "--http2-prior-knowledge")
_SECURE = ("--cacert", os.environ["ALIGNSERVE_CA"])
_BEARER = ("-H", f"authorization: Bearer {os.environ['ALIGNSERVE_EMBED_KEY']}")
_GOLDEN = json.loads(Path(os.environ["ALIGNSERVE_GOLDEN"]).read_text("utf-8"))
_TEXT = {"texts": ["a cat"]}


def main() -> None:
    """Prints a line for each check."""
    _print({"client": "buf curl", "versions": {"buf": version("buf-bin")}})
    for name, check in _CHECKS.items():
        try:
            detail = check()
        except Exception as error:
            _print({"check": name, "ok": False, "detail": f"{type(error).__name__}: {error}"})
        else:
            _print({"check": name, "ok": True, "detail": detail})


def _grpc_with_reflection() -> str:
    return _text(_call(_GRPC, "EmbedText", _TEXT, *_OVER_GRPC))


def _grpc_with_protos() -> str:
    return _text(_call(_GRPC, "EmbedText", _TEXT, *_OVER_GRPC, "--schema", _PROTOS))


def _grpc_with_tls_and_key() -> str:
    flags = ("--protocol", "grpc", *_SECURE, *_BEARER, "--reflect-header", "*")
    return _text(_call(_TLS_GRPC, "EmbedText", _TEXT, *flags))


def _connect() -> str:
    return _text(_call(_HTTP, "EmbedText", _TEXT, "--protocol", "connect", "--schema", _PROTOS))


def _grpc_web() -> str:
    return _text(_call(_HTTP, "EmbedText", _TEXT, "--protocol", "grpcweb", "--schema", _PROTOS))


def _connect_image() -> str:
    content = (Path(os.environ["ALIGNSERVE_PHOTOS"]) / "cat.jpg").read_bytes()
    request = {"images": [{"content": base64.b64encode(content).decode()}]}
    answer = _call(_HTTP, "EmbedImage", request, "--protocol", "connect", "--schema", _PROTOS)
    return _agrees(answer["embeddings"][0]["values"], _GOLDEN["images"]["cat.jpg"])


def _connect_with_tls_and_key() -> str:
    flags = ("--protocol", "connect", "--schema", _PROTOS, *_SECURE, *_BEARER)
    return _text(_call(_TLS_HTTP, "EmbedText", _TEXT, *flags))


def _connect_refusal() -> str:
    return _refusal(_HTTP, {"texts": [" "]}, "--protocol", "connect", "--schema", _PROTOS)


def _grpc_web_refusal() -> str:
    flags = ("--protocol", "grpcweb", "--schema", _PROTOS)
    error = json.loads(_finished(_HTTP, "EmbedText", {"texts": [" "]}, *flags).stderr)
    assert error["code"] == "invalid_argument", error
    details = {each["type"]: base64.b64decode(each["value"] + "==") for each in error["details"]}
    assert b"TEXT_EMPTY" in details["google.rpc.ErrorInfo"], details
    assert b"texts[0]" in details["google.rpc.BadRequest"], details
    return "invalid_argument, TEXT_EMPTY, texts[0]"


def _connect_without_key() -> str:
    finished = _finished(
        _TLS_HTTP, "EmbedText", _TEXT, "--protocol", "connect", "--schema", _PROTOS, *_SECURE
    )
    assert "unauthenticated" in finished.stderr, finished.stderr
    assert "KEY_MISSING" in finished.stderr, finished.stderr
    return "unauthenticated, KEY_MISSING"


_CHECKS: dict[str, Callable[[], str]] = {
    "gRPC with reflection": _grpc_with_reflection,
    "gRPC with the protos": _grpc_with_protos,
    "gRPC with TLS, a key and reflection": _grpc_with_tls_and_key,
    "Connect": _connect,
    "gRPC-Web": _grpc_web,
    "Connect with an image": _connect_image,
    "Connect with TLS and a key": _connect_with_tls_and_key,
    "Connect shows code and details of an error": _connect_refusal,
    "gRPC-Web shows code and details of an error": _grpc_web_refusal,
    "Connect without a key is refused": _connect_without_key,
}


def _refusal(url: str, request: dict[str, Any], *flags: str) -> str:
    finished = _finished(url, "EmbedText", request, *flags)
    for wanted in ("invalid_argument", "TEXT_EMPTY", "texts[0]"):
        assert wanted in finished.stderr, finished.stderr
    return "invalid_argument, TEXT_EMPTY, texts[0]"


def _call(url: str, method: str, request: dict[str, Any], *flags: str) -> Any:
    finished = _finished(url, method, request, *flags)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def _finished(
    url: str, method: str, request: dict[str, Any], *flags: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_BUF, "curl", *flags, "--emit-defaults", "-d", "@-", f"{url}/{_SERVICE}/{method}"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def _text(answer: Any) -> str:
    return _agrees(answer["embeddings"][0]["values"], _GOLDEN["texts"]["a cat"])


def _agrees(values: list[float], golden: list[float]) -> str:
    assert len(values) == len(golden), f"{len(values)} numbers"
    worst = max(abs(one - other) for one, other in zip(values, golden, strict=True))
    assert worst <= 1e-4, f"differs by {worst:.2g}"
    return f"{len(values)} numbers, within {worst:.1g}"


def _print(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
