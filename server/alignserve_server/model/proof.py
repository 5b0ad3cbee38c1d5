"""Verifies at startup that tokens, pixels and embeddings of the probe equal transformers'."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import PIL

from alignserve_server.errors import InvalidArgument, TextEmpty, TextUnsupported
from alignserve_server.model import probe
from alignserve_server.model.checkpoint import CheckpointError
from alignserve_server.model.encoder import (
    TOKEN_BYTES,
    DeviceLost,
    Embeddings,
    PixelValues,
    TokenIds,
    token_ids,
)
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.model.preprocessing.texts import TextTokenizer
from alignserve_server.model.probe import Reference
from alignserve_server.model.runtimes.runtime import PreparedShape, Runtime, lowest_cosine, padded
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_MAX_GREY_LEVELS = 0.02  # maximum difference of a pixel: float32's rounding, but not a step of 8 bits
_MAX_GREY_LEVELS_BETWEEN_PILLOWS = 4.0  # for lossy files; a different way of resizing differs by tens


class _Probe(NamedTuple):
    """The probe's inputs, and the reference's embeddings of them."""

    pixels: list[PixelValues]
    tokens: list[TokenIds]
    image_embeddings: Embeddings
    text_embeddings: Embeddings


def proved_cosine(
    runtime: Runtime, reference: Reference, images: ImagePreprocessor, texts: TextTokenizer, least: float
) -> float:
    """Returns the lowest cosine similarity of the runtime's embeddings of the probe to the reference's.

    A prepared shape below `least` is dropped; the others count, and the probe in batches of its own.

    Raises:
        CheckpointError: The tokens of a text or the pixels of an image differ from the reference's, or the
            runtime fails on them.
        DeviceLost: The device failed.
    """
    probed = _probe_of(reference, images, texts)
    try:
        kept = _drop_inexact(runtime, probed, least)
        embeddings = np.concatenate(
            [
                *(runtime.embed_pixels([pixels]) for pixels in probed.pixels),
                runtime.embed_tokens(*padded(probed.tokens)),
            ]
        )
    except DeviceLost:
        raise
    except Exception as error:  # runtimes raise anything if the networks belong to another model
        raise CheckpointError(
            f"{runtime.name} fails on the probe: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    if embeddings.shape != reference.embeddings.shape:
        raise CheckpointError(
            f"{runtime.name} embeds the probe as {embeddings.shape}, but transformers as "
            f"{reference.embeddings.shape}; the networks belong to another model"
        )
    return min([lowest_cosine(embeddings, reference.embeddings), *kept])  # NaN, if any, is first


def _probe_of(reference: Reference, images: ImagePreprocessor, texts: TextTokenizer) -> _Probe:
    input_ids = {text: _checked_tokens(text, reference, texts) for text in reference.input_ids}
    pixels = {
        name: _checked_pixels(name, expected, reference, images)
        for name, expected in zip(reference.images, reference.pixel_values, strict=True)
    }
    count = len(probe.EMBEDDED_IMAGES)
    return _Probe(
        [pixels[name] for name in probe.EMBEDDED_IMAGES],
        [token_ids(input_ids[text]) for text in reference.embedded_texts],
        reference.embeddings[:count],
        reference.embeddings[count:],
    )


def _drop_inexact(runtime: Runtime, probed: _Probe, least: float) -> list[float]:
    """Drops the prepared shapes below `least`; returns the lowest cosine of each of the others."""
    cosines = {shape: _shape_cosine(runtime, shape, probed) for shape in runtime.prepared_shapes}
    inexact = {shape: cosine for shape, cosine in cosines.items() if not cosine >= least}
    for shape in inexact:
        runtime.drop(shape)
    if inexact:
        _log.warning(
            "cuda_graphs_inexact",
            batches=[f"{size} x {tokens}" if tokens else str(size) for size, tokens in inexact],
            min_cosine_similarity=min(inexact.values()),
            limit=least,
        )
    return [cosine for shape, cosine in cosines.items() if shape not in inexact]


def _shape_cosine(runtime: Runtime, shape: PreparedShape, probed: _Probe) -> float:
    """Returns the lowest cosine of a full batch of a shape; NaN if no text of the probe is so short."""
    if shape.tokens is None:
        rows = np.arange(shape.batch_size) % len(probed.pixels)
        return lowest_cosine(
            runtime.embed_pixels([probed.pixels[row] for row in rows]), probed.image_embeddings[rows]
        )
    fitting = [row for row, tokens in enumerate(probed.tokens) if len(tokens) <= shape.tokens * TOKEN_BYTES]
    if not fitting:
        return math.nan
    rows = np.resize(fitting, shape.batch_size)
    input_ids, attention_mask = padded([probed.tokens[row] for row in rows])
    padding = ((0, 0), (0, shape.tokens - input_ids.shape[1]))
    embeddings = runtime.embed_tokens(np.pad(input_ids, padding), np.pad(attention_mask, padding))
    return lowest_cosine(embeddings, probed.text_embeddings[rows])


def _checked_tokens(text: str, reference: Reference, texts: TextTokenizer) -> tuple[int, ...]:
    expected = tuple(reference.input_ids[text])
    try:
        actual = texts.tokens(text, truncate=True).input_ids
    except TextEmpty:  # the reference must then have only special tokens
        actual = tuple(reference.input_ids[""])
    except TextUnsupported:
        if max(expected) >= reference.vocabulary_rows:
            return expected
        actual = ()
    except Exception as error:  # the library raises anything for untrusted files
        raise CheckpointError(
            f"the tokenizer (tokenizer.json, tokenizer_config.json) fails on the text {text[:200]!r}: {error}"
        ) from error
    if actual != expected:
        raise CheckpointError(
            f"the text {text!r} has the tokens {list(actual)} here and {list(expected)} in transformers; "
            "the tokenizer's files have settings that are not supported"
        )
    return actual


def _checked_pixels(
    name: str, expected: np.ndarray, reference: Reference, images: ImagePreprocessor
) -> PixelValues:
    """Compares (height, width, 3) pixels, when rescaled, with (3, height, width) of the reference."""
    try:
        pixels = images(reference.images[name])
    except InvalidArgument as error:
        raise CheckpointError(
            f"the image {name} is refused here, but read by transformers: {error}"
        ) from error
    if pixels.shape != (*expected.shape[1:], 3):
        raise CheckpointError(
            f"the image {name} is {pixels.shape[:2]} here and {expected.shape[1:]} in transformers; "
            "the image processor's configuration has settings that are not supported"
        )
    distance = np.abs(pixels * images.scale + images.offset - expected.transpose(1, 2, 0)).max(axis=(0, 1))
    most = _MAX_GREY_LEVELS if reference.pillow == PIL.__version__ else _MAX_GREY_LEVELS_BETWEEN_PILLOWS
    if not (distance <= most * np.abs(images.scale)).all():
        raise CheckpointError(
            f"the pixels of the image {name} differ from transformers' by up to {distance.max():g}; "
            "the image processor's configuration has settings that are not supported"
        )
    return pixels
