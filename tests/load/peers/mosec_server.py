"""mosec with the same checkpoint on plain transformers; processes: two for decoding, one per tower.

python -m tests.load.peers.mosec_server FOLDER PORT
"""

from __future__ import annotations

import os
import sys

import mosec
import numpy as np

from tests.load.peers.plain_model import (
    BATCH_WAIT_SECONDS,
    MAX_BATCH_SIZES,
    PlainModel,
    PlainProcessor,
)

_FOLDER = "ALIGN_FOLDER"  # an environment variable, since mosec starts the workers as processes


class Decode(mosec.Worker):
    """Decodes an image file."""

    def __init__(self) -> None:
        super().__init__()
        self._processor = PlainProcessor(os.environ[_FOLDER])

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> np.ndarray:
        return self._processor.pixel_values([data])[0]


class EmbedPixels(mosec.Worker):
    """Embeds batches of decoded images."""

    def __init__(self) -> None:
        super().__init__()
        self._model = PlainModel(os.environ[_FOLDER])

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        return list(self._model.embed_pixel_values(np.stack(data)))

    def serialize(self, data: np.ndarray) -> bytes:
        return data.astype(np.float32).tobytes()


class EmbedText(mosec.Worker):
    """Embeds batches of texts."""

    def __init__(self) -> None:
        super().__init__()
        self._model = PlainModel(os.environ[_FOLDER])

    def deserialize(self, data: bytes) -> str:
        return data.decode()

    def forward(self, data: list[str]) -> list[np.ndarray]:
        return list(self._model.embed_texts(data))

    def serialize(self, data: np.ndarray) -> bytes:
        return data.astype(np.float32).tobytes()


def main(folder: str, port: str) -> None:
    """Serves until it is killed."""
    os.environ[_FOLDER] = folder
    sys.argv = ["mosec", "--address", "127.0.0.1", "--port", port, "--timeout", "60000"]
    server = mosec.Server()
    server.register_runtime(
        {
            "/image": [mosec.Runtime(Decode, num=2, timeout=60), _batched(EmbedPixels, "image")],
            "/text": [_batched(EmbedText, "text")],
        }
    )
    server.run()


def _batched(worker: type[mosec.Worker], modality: str) -> mosec.Runtime:
    return mosec.Runtime(
        worker,
        max_batch_size=MAX_BATCH_SIZES[modality],
        max_wait_time=round(1e3 * BATCH_WAIT_SECONDS),
        timeout=60,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
