"""BentoML with the same checkpoint on plain transformers: one worker, adaptive batching.

python -m tests.load.peers.bentoml_server FOLDER PORT
"""

from __future__ import annotations

import base64
import os
import sys

import bentoml

from tests.load.peers.plain_model import MAX_BATCH_SIZES, PlainModel

_FOLDER = "ALIGN_FOLDER"  # an environment variable, since BentoML starts the worker as a process


@bentoml.service(workers=1)
class Embed:
    """Embeds images in base64, or texts; returns packed float32 in base64."""

    def __init__(self) -> None:
        self._model = PlainModel(os.environ[_FOLDER])

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZES["image"])
    def image(self, contents: list[str]) -> list[str]:
        return self._embed("image", [base64.b64decode(content) for content in contents])

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZES["text"])
    def text(self, contents: list[str]) -> list[str]:
        return self._embed("text", [content.encode() for content in contents])

    def _embed(self, modality: str, bodies: list[bytes]) -> list[str]:
        return [base64.b64encode(row).decode() for row in self._model.embed(modality, bodies)]


def main(folder: str, port: str) -> None:
    """Serves until it is killed."""
    os.environ[_FOLDER] = folder
    command = (
        "-m",
        "bentoml",
        "serve",
        f"{__spec__.name}:{Embed.name}",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    )
    os.execv(sys.executable, (sys.executable, *command))  # noqa: S606 — its own command line


if __name__ == "__main__":
    main(*sys.argv[1:])
