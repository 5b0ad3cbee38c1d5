"""Compares every graph's vectors with those of transformers' AlignModel in float32 on the CPU."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from alignserve_server.model import probe
from alignserve_server.model.encoder import Embeddings, TokenIds, token_ids
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes.network import Network
from alignserve_server.model.runtimes.runtime import lowest_cosine, padded
from numpy.typing import NDArray

from tests.gpu.check import Check, CheckFailed
from tests.gpu.loading import Loaded
from tests.gpu.results import Row

LEAST_COSINE = 0.999  # the server's default
_FIRST_WORD = 5  # the ids before it are special tokens


def check_images(check: Check, loaded: Loaded, network: Network) -> None:
    """Compares full and odd batches of each graph, after other batches have used its memory.

    Raises:
        CheckFailed: A cosine is under the server's bound.
    """
    encoder, contents = loaded.encoder, probe.images()
    pixels = [encoder.preprocess_image(contents[name]) for name in probe.EMBEDDED_IMAGES]
    expected = _expected_images(loaded, network, np.stack(pixels))
    noise = np.random.default_rng(1).integers(0, 256, pixels[0].shape, np.uint8)
    inexact: list[int] = []
    for size in loaded.batch_sizes:
        encoder.encode_images([noise] * size)
        cosines = {}
        for name, count in (("full", size), ("one less", max(1, size - 1))):
            which = np.arange(count) % len(pixels)
            cosines[name] = lowest_cosine(encoder.encode_images([pixels[i] for i in which]), expected[which])
        row: Row = {"batch": size, **{name: f"{cosine:.6f}" for name, cosine in cosines.items()}}
        check.results.proved("Exactness of images: lowest cosine", row)
        if not min(cosines.values()) >= LEAST_COSINE:
            inexact.append(size)
    if inexact:
        raise CheckFailed(f"images in batches of {inexact} have cosines below {LEAST_COSINE}")


def check_texts(check: Check, loaded: Loaded, network: Network) -> None:
    """Compares a full batch of each graph: texts of full length, of half of it, and of one token.

    Raises:
        CheckFailed: A cosine is under the server's bound.
    """
    rng = np.random.default_rng(2)
    vocabulary = network.config.text_config.vocab_size
    worst: dict[int, float] = {}
    for length in sorted({graph.shape[1] for graph in loaded.texts}):
        lengths = (length, max(1, length // 2), 1, length - 1)
        texts = [token_ids(rng.integers(_FIRST_WORD, vocabulary, count).tolist()) for count in lengths]
        expected = _expected_texts(network, texts)
        for size in (graph.shape[0] for graph in loaded.texts if graph.shape[1] == length):
            which = [i % len(texts) for i in range(size)]
            actual = loaded.encoder.encode_texts([texts[i] for i in which])
            worst[length] = min(worst.get(length, 1.0), lowest_cosine(actual, expected[which]))
    rows: list[Row] = [{"tokens": length, "cosine": f"{cosine:.6f}"} for length, cosine in worst.items()]
    check.results.proved("Exactness of texts: lowest cosine of all batch sizes", *rows)
    if not all(cosine >= LEAST_COSINE for cosine in worst.values()):
        raise CheckFailed(f"texts: cosines {worst}")


@torch.inference_mode()
def _expected_images(loaded: Loaded, network: Network, pixels: NDArray[np.uint8]) -> Embeddings:
    images = loaded.encoder.preprocess_image
    values = (pixels * images.scale + images.offset).astype(np.float32).transpose(0, 3, 1, 2)
    embeddings = networks.embed_pixel_values(network, torch.from_numpy(np.ascontiguousarray(values)))
    return cast("Embeddings", embeddings.numpy())


@torch.inference_mode()
def _expected_texts(network: Network, texts: list[TokenIds]) -> Embeddings:
    input_ids, attention_mask = map(torch.from_numpy, padded(texts))
    return cast("Embeddings", networks.embed_tokens(network, input_ids, attention_mask).numpy())
