"""Verifies at startup that tokens and pixels equal transformers', and embeds the probe for comparison."""

from __future__ import annotations

import numpy as np
import PIL

from alignserve_server.errors import InvalidArgument, TextEmpty, TextUnsupported
from alignserve_server.model import probe
from alignserve_server.model.checkpoint import CheckpointError
from alignserve_server.model.encoder import Embeddings, PixelValues, token_ids
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.model.preprocessing.texts import TextTokenizer
from alignserve_server.model.probe import Reference
from alignserve_server.model.runtimes.runtime import Runtime, padded

_MAX_GREY_LEVELS = 0.02  # maximum difference of a pixel: float32's rounding, but not a step of 8 bits
_MAX_GREY_LEVELS_BETWEEN_PILLOWS = 4.0  # for lossy files; a different way of resizing differs by tens


def embed_probe(
    runtime: Runtime, reference: Reference, images: ImagePreprocessor, texts: TextTokenizer
) -> Embeddings:
    """Embeds the probe, in the order of `reference.embeddings`.

    Raises:
        CheckpointError: The tokens of a text or the pixels of an image differ from the reference's, or the
            runtime fails on them.
    """
    input_ids = {text: _checked_tokens(text, reference, texts) for text in reference.input_ids}
    pixels = {
        name: _checked_pixels(name, expected, reference, images)
        for name, expected in zip(reference.images, reference.pixel_values, strict=True)
    }
    tokens = padded([token_ids(input_ids[text]) for text in reference.embedded_texts])
    try:
        image_rows = [runtime.embed_pixels(pixels[name][None]) for name in probe.EMBEDDED_IMAGES]
        embeddings = np.concatenate([*image_rows, runtime.embed_tokens(*tokens)])
    except Exception as error:  # runtimes raise anything if the networks belong to another model
        raise CheckpointError(
            f"{runtime.name} fails on the probe: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    if embeddings.shape != reference.embeddings.shape:
        raise CheckpointError(
            f"{runtime.name} embeds the probe as {embeddings.shape}, but transformers as "
            f"{reference.embeddings.shape}; the networks belong to another model"
        )
    return embeddings


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
