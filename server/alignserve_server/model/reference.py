"""Builds the reference: what transformers' tokenizer, image processor and AlignModel return for the probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AlignProcessor, AutoImageProcessor, AutoTokenizer
from transformers.image_utils import load_image

from alignserve_server.model import probe
from alignserve_server.model.agreement import unembedded_tokens
from alignserve_server.model.checkpoint import Checkpoint, CheckpointError
from alignserve_server.model.encoder import Embeddings, has_direction, token_ids
from alignserve_server.model.preprocessing.texts import max_text_tokens
from alignserve_server.model.probe import Reference
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes.network import Network
from alignserve_server.model.runtimes.runtime import padded

_VERY_LONG = "cat " * 600


def make_reference(checkpoint: Checkpoint, network: Network) -> Reference:
    """Runs a checkpoint's own processors and network in transformers on the probe.

    Raises:
        CheckpointError: transformers fails on the probe, or does something that is not supported here.
    """
    with networks.quiet_transformers():
        processor = _load_processor(checkpoint)
        rows = network.text_model.embeddings.word_embeddings.num_embeddings
        limit = _max_text_tokens(checkpoint, processor)
        texts = [*probe.TEXTS, "", *probe.texts_with(_added_tokens(processor.tokenizer))]
        input_ids = {text: _input_ids(processor, text, limit) for text in texts}
        embedded = [text for text in probe.EMBEDDED_TEXTS if max(input_ids[text], default=rows) < rows]
        needed = [*input_ids[""], processor.tokenizer.unk_token_id]
        unembedded = unembedded_tokens(processor.tokenizer.get_vocab(), needed, rows)
        pixel_values = _pixel_values(processor)
        embeddings = _embeddings(network, pixel_values, [input_ids[text] for text in embedded])
    _check_embeddings(embeddings, embedded)
    return Reference(
        tokenizer=processor.tokenizer.backend_tokenizer.to_str(),
        splits_special_tokens=bool(processor.tokenizer.split_special_tokens),
        truncation_side=processor.tokenizer.truncation_side,
        max_text_tokens=limit,
        vocabulary_rows=rows,
        unembedded_tokens=unembedded,
        temperature=network.temperature.item(),
        embedding_dimension=networks.embedding_dimension(network),
        input_ids=input_ids,
        embedded_texts=embedded,
        images=probe.images(),
        pillow=PIL.__version__,
        pixel_values=pixel_values,
        embeddings=embeddings,
    )


@torch.inference_mode()
def logits_of_transformers(
    checkpoint: Checkpoint, picture: bytes, texts: Sequence[str]
) -> NDArray[np.float32]:
    """Returns AlignModel's logits of an image file for texts, with AlignProcessor's inputs, in float32.

    Raises:
        CheckpointError: transformers cannot load the checkpoint, or fails on the image.
    """
    network = networks.load_network(checkpoint.folder)
    with networks.quiet_transformers():
        processor = _load_processor(checkpoint)
        try:
            image = load_image(Image.open(BytesIO(picture)))
            inputs = processor(images=image, text=list(texts), return_tensors="pt")
            with _one_thread():
                logits = network(**inputs).logits_per_image[0]
        except Exception as error:
            raise CheckpointError(f"transformers fails on the picture: {networks.one_line(error)}") from error
    values: NDArray[np.float32] = logits.numpy()
    return values


def _load_processor(checkpoint: Checkpoint) -> Any:
    """Loads the two processors as AlignProcessor does, the image processor without torchvision."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    load_image_processor: Any = AutoImageProcessor.from_pretrained
    make_processor: Any = AlignProcessor
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, **options)
        images = load_image_processor(checkpoint.folder, backend="pil", **options)
        processor = make_processor(images, tokenizer)
    except Exception as error:  # untrusted files can cause any error
        raise CheckpointError(
            f"transformers cannot load the processors of {checkpoint.folder}: {networks.one_line(error)}"
        ) from error
    _check_tokenizer(tokenizer)
    return processor


def _check_tokenizer(tokenizer: Any) -> None:
    """Refuses settings that the comparison cannot detect, as it embeds texts one by one and unpadded."""
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"the tokenizer class {type(tokenizer).__name__} has no tokenizers backend; "
            "supported are those that save a tokenizer.json"
        )
    if tokenizer.padding_side != "right":
        raise CheckpointError(
            f"padding_side {tokenizer.padding_side!r} is not supported: a text's embedding is read at its "
            "first position, where the padding would be; supported is 'right'"
        )
    if "attention_mask" not in tokenizer.model_input_names:
        raise CheckpointError(
            f"model_input_names {tokenizer.model_input_names!r} is not supported: without 'attention_mask' a "
            "text's embedding would depend on its padding"
        )


def _added_tokens(tokenizer: Any) -> list[str]:
    return [str(token) for token in tokenizer.added_tokens_decoder.values()]


def _max_text_tokens(checkpoint: Checkpoint, processor: Any) -> int:
    """Returns the smallest limit; the processor's can also come from tokenizer.json."""
    limit = min(max_text_tokens(checkpoint), len(_tokens(processor, _VERY_LONG)["input_ids"]))
    special_tokens = processor.tokenizer.num_special_tokens_to_add()
    if limit <= special_tokens:
        raise CheckpointError(
            f"texts can have {limit} tokens (model_max_length, max_position_embeddings), of which "
            f"{special_tokens} are special; that leaves none for words"
        )
    return limit


def _input_ids(processor: Any, text: str, limit: int) -> list[int]:
    tokens = _tokens(processor, text, max_length=limit)
    if any(tokens.get("token_type_ids", ())):
        raise CheckpointError(
            f"the tokenizer gives {text!r} token types other than 0, which is not supported"
        )
    return list(tokens["input_ids"])


def _tokens(processor: Any, text: str, **options: int) -> Any:
    try:
        return processor(text=text, truncation=True, padding=False, **options)
    except Exception as error:
        raise CheckpointError(
            f"transformers' tokenizer fails on {text[:200]!r}: {networks.one_line(error)}"
        ) from error


def _pixel_values(processor: Any) -> NDArray[np.float32]:
    values = [_pixels_of(processor, name, content) for name, content in probe.images().items()]
    if len({value.shape for value in values}) != 1:
        raise CheckpointError("transformers' image processor makes images of different sizes")
    return np.stack(values)


def _pixels_of(processor: Any, name: str, content: bytes) -> NDArray[np.float32]:
    try:
        image = load_image(Image.open(BytesIO(content)))
        return np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], np.float32)
    except Exception as error:
        raise CheckpointError(
            f"transformers' image processor fails on {name}: {networks.one_line(error)}"
        ) from error


@torch.inference_mode()
def _embeddings(network: Network, pixel_values: NDArray[np.float32], texts: list[list[int]]) -> Embeddings:
    if not texts:
        raise CheckpointError(
            "the tokenizer belongs to another model: the word embeddings have no tokens of the probe's texts"
        )
    input_ids, attention_mask = map(torch.from_numpy, padded(list(map(token_ids, texts))))
    pixels = torch.from_numpy(pixel_values[: len(probe.EMBEDDED_IMAGES)])
    try:
        with _one_thread():
            images = networks.embed_pixel_values(network, pixels)
            embeddings = torch.cat([images, networks.embed_tokens(network, input_ids, attention_mask)])
    except Exception as error:
        raise CheckpointError(
            f"transformers' AlignModel fails on the probe: {networks.one_line(error)}"
        ) from error
    return embeddings.numpy()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits torch to the calling thread, for the block.

    Several threads synchronize at hundreds of barriers; if one shares its core with another process, all wait
    for it, and a forward of the embedded checkpoint takes 3 to 10 times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_embeddings(embeddings: Embeddings, texts: list[str]) -> None:
    for name, is_sound in zip([*probe.EMBEDDED_IMAGES, *texts], has_direction(embeddings), strict=True):
        if not is_sound:
            raise CheckpointError(
                f"transformers' AlignModel embeds {name!r} as numbers that are zero or not finite; "
                "the weights are corrupt or were not trained"
            )
