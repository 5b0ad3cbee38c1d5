"""Triton with the same checkpoint on plain transformers: PyTriton's backend and the dynamic batcher.

python -m tests.load.peers.triton_server FOLDER PORT
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from tests.load.peers.plain_model import BATCH_WAIT_SECONDS, MAX_BATCH_SIZES, PlainModel


def main(folder: str, port: str) -> None:
    """Serves until it is killed."""
    model = PlainModel(folder)
    config = TritonConfig(
        grpc_address="127.0.0.1", grpc_port=int(port), allow_http=False, allow_metrics=False
    )
    with (
        tempfile.TemporaryDirectory(prefix="triton-") as temporary_folder,
        Triton(config=config, workspace=f"{temporary_folder}/workspace") as triton,
    ):
        for modality, max_batch_size in MAX_BATCH_SIZES.items():
            batcher = DynamicBatcher(max_queue_delay_microseconds=round(1e6 * BATCH_WAIT_SECONDS))
            triton.bind(
                model_name=modality,
                infer_func=_embed(model, modality),
                inputs=[Tensor(name="content", dtype=object, shape=(1,))],
                outputs=[Tensor(name="embedding", dtype=np.float32, shape=(-1,))],
                config=ModelConfig(max_batch_size=max_batch_size, batcher=batcher),
            )
        triton.serve()


def _embed(model: PlainModel, modality: str) -> Callable[..., dict[str, np.ndarray]]:
    @batch
    def embed(content: np.ndarray) -> dict[str, np.ndarray]:
        """Embeds a batch of contents (items, 1)."""
        rows = model.embed(modality, list(content[:, 0]))
        return {"embedding": np.stack([np.frombuffer(row, np.float32) for row in rows])}

    return embed


if __name__ == "__main__":
    main(*sys.argv[1:])
