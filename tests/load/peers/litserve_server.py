"""LitServe with the same checkpoint on plain transformers: one worker per modality.

python -m tests.load.peers.litserve_server FOLDER PORT
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
from starlette.responses import Response

from tests.load.peers.plain_model import BATCH_WAIT_SECONDS, MAX_BATCH_SIZES, PlainModel


class EmbedAPI(litserve.LitAPI):
    """Embeds images or texts, sent as base64 in JSON, the format that LitServe reads by default."""

    def __init__(self, folder: str, modality: str, **options: Any) -> None:
        super().__init__(**options)
        self._folder, self._modality = folder, modality

    def setup(self, device: str) -> None:
        self._model = PlainModel(self._folder)

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["content"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, inputs: list[bytes]) -> list[bytes]:
        return self._model.embed(self._modality, inputs)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output)


def main(folder: str, port: str) -> None:
    """Serves until it is killed."""
    apis = [
        EmbedAPI(
            folder,
            modality,
            max_batch_size=max_batch_size,
            batch_timeout=BATCH_WAIT_SECONDS,
            api_path=f"/{modality}",
        )
        for modality, max_batch_size in MAX_BATCH_SIZES.items()
    ]
    litserve.LitServer(apis, accelerator="cpu").run(
        host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
