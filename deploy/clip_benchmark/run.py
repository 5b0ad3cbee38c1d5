"""Runs CLIP_benchmark on the model of an alignserve server.

    python deploy/clip_benchmark/run.py eval --pretrained HOST:PORT --dataset wds/NAME --dataset_root FOLDER

All options are CLIP_benchmark's own; this file adds the model type `alignserve`, and needs nothing else of
this folder. CLIP_benchmark stays as it is installed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from alignserve import Client

MODEL_TYPE = "alignserve"

_CALLS = 32  # at a time, so that the server can batch them
# Pictures are sent by threads of one process, which other processes could not wait for; and in half precision
# the measures would round what the server has computed.
_OPTIONS = ("--model_type", MODEL_TYPE, "--num_workers", "0", "--no_amp")
_DEFAULT_MODEL = ("--model", "align")  # only a part of the name of the output


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts in place of tokens, since the server has the tokenizer."""

    texts: Sequence[str]

    def to(self, device: Any) -> Texts:
        """Returns itself, since texts are on no device."""
        del device
        return self


class ServedModel:
    """A model as CLIP_benchmark takes it, whose work a server does.

    A picture is sent when the data loader reads it, in full size, and is a ticket until its batch is encoded.

    Args:
        client: Of the server.
        device: Of the tensors that are returned.

    Attributes:
        logit_scale: Logarithm of what similarities are multiplied with, as OpenCLIP's models have it.
    """

    def __init__(self, client: Client, device: str | torch.device = "cpu") -> None:
        self._client = client
        self._device = device
        self._pool = ThreadPoolExecutor(_CALLS, "alignserve")
        self._tickets = count()
        self._pictures: dict[int, Future[np.ndarray]] = {}
        self.logit_scale = torch.tensor(-math.log(client.model_info().temperature), device=device)

    def transform(self, picture: Any) -> torch.Tensor:
        """Sends a picture, of Pillow, and returns its ticket, (1,)."""
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("run with --num_workers 0")
        ticket = next(self._tickets)
        self._pictures[ticket] = self._pool.submit(self._client.embed_image, picture)
        return torch.tensor([ticket])

    def encode_image(self, tickets: torch.Tensor) -> torch.Tensor:
        """Returns the (pictures, dimension) embeddings for tickets of shape (pictures, 1)."""
        embeddings = [self._pictures.pop(ticket).result() for ticket in tickets.flatten().tolist()]
        return torch.from_numpy(np.stack(embeddings)).to(self._device)

    def encode_text(self, texts: Texts) -> torch.Tensor:
        """Returns the (texts, dimension) embeddings; texts that are too long are truncated."""
        embeddings = self._client.embed_text(list(texts.texts), truncate=True)
        return torch.from_numpy(embeddings).to(self._device)

    def eval(self) -> ServedModel:
        """Returns itself, since a server does not train."""
        return self


def load(
    model_name: str, pretrained: str, device: str | torch.device = "cpu", **_: Any
) -> tuple[ServedModel, Callable[[Any], torch.Tensor], Callable[[Sequence[str]], Texts]]:
    """Returns the model, the transform and the tokenizer, as CLIP_benchmark's loaders do.

    Args:
        model_name: Only names the output.
        pretrained: The address of the server.
        device: Of the tensors.
    """
    del model_name
    model = ServedModel(Client(pretrained), device)
    return model, model.transform, Texts


def main(arguments: Sequence[str]) -> None:
    """Runs CLIP_benchmark's command."""
    from clip_benchmark import cli, models

    models.TYPE2FUNC[MODEL_TYPE] = load
    models.MODEL_TYPES.append(MODEL_TYPE)  # the command checks it against this list
    is_eval = list(arguments[:1]) == ["eval"]
    model = () if "--model" in arguments else _DEFAULT_MODEL
    sys.argv = ["clip_benchmark", *arguments, *((*model, *_OPTIONS) if is_eval else ())]
    cli.main()


if __name__ == "__main__":
    main(sys.argv[1:])
