"""What tests of `alignserve batch` share: how files of requests are written, and answers read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignserve.cli import main
from alignserve.testing import FakeServer


def batch(server: FakeServer, requests: Path, out: Path, *more: str) -> int:
    return main(["--server", server.target, "batch", str(requests), str(out), *more])


def line(custom_id: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body})


def write(requests: Path, *lines: str) -> None:
    requests.write_text("".join(f"{each}\n" for each in lines))


def answers(out: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in out.read_text().splitlines()]


def sent(server: FakeServer) -> list[str | bytes]:
    """Returns the texts and images that the server was sent, in order."""
    requests = [call.request for call in server.received if call.method == "StreamInfer"]
    return [
        each.embed_text.texts[0] if each.HasField("embed_text") else each.embed_image.images[0].content
        for each in requests
        if not each.HasField("stream_options")
    ]


def error_of(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer["response"]["body"]["error"]
    return found
