"""LitServe with the same checkpoint on plain transformers.

python -m tests.load.peers.litserve_server FOLDER PORT MAX_BATCH_SIZE image|text
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import numpy as np
from starlette.responses import Response

from tests.load.peers.plain_model import PlainModel


class EmbedAPI(litserve.LitAPI):
    """Embeds images or texts, sent as base64 in JSON, which is what it reads by itself."""

    def __init__(self, folder: str, modality: str, **options: Any) -> None:
        super().__init__(**options)
        self._folder, self._modality = folder, modality

    def setup(self, device: str) -> None:
        self._model = PlainModel(self._folder)

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["content"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, inputs: list[bytes]) -> np.ndarray:
        if self._modality == "image":
            return self._model.embed_images(inputs)
        return self._model.embed_texts([text.decode() for text in inputs])

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        return Response(output.astype(np.float32).tobytes())


def main(folder: str, port: str, max_batch_size: str, modality: str) -> None:
    """Serves until it is killed."""
    api = EmbedAPI(
        folder, modality, max_batch_size=int(max_batch_size), batch_timeout=0.002, api_path=f"/{modality}"
    )
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
