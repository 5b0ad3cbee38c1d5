"""What the files of a checkpoint must agree on: the tokenizer, the configuration and the weights.

`check_agreement` finds before anything is loaded, from the headers of the files, what would otherwise fail or
be noticed only after minutes. The loaders use the same tests, so that both refuse in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding

from alignserve_server.model.checkpoint import Checkpoint, CheckpointError
from alignserve_server.model.checkpoint_files import StoredWeight, parse_tokenizer, read_text
from alignserve_server.model.preprocessing.texts import max_text_tokens, unknown_id

WORD_EMBEDDINGS = "text_model.embeddings.word_embeddings.weight"
_POSITIONS = "text_model.embeddings.position_embeddings.weight"
_TEXT_PROJECTION = "text_projection.weight"
_LAST_CONVOLUTION = "vision_model.encoder.blocks.{}.projection.project_conv.weight"
_TEMPERATURE = "temperature"

# The weights whose first dimension a field of config.json sets, and transformers' default for the field.
_SIZES: Mapping[str, tuple[str | None, str, int]] = {
    WORD_EMBEDDINGS: ("text_config", "vocab_size", 30522),
    _POSITIONS: ("text_config", "max_position_embeddings", 512),
    _TEXT_PROJECTION: (None, "projection_dim", 640),
}
_NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True, slots=True)
class TokenizerFit:
    """How a tokenizer fits the text tower.

    Attributes:
        tokens: Size of the vocabulary.
        rows: Of the word embeddings; None if the weights have no such name.
        unembedded: Tokens without a row; texts with them are refused.
        max_tokens: Maximum length of a text.
    """

    tokens: int
    rows: int | None
    unembedded: tuple[str, ...]
    max_tokens: int


def check_agreement(checkpoint: Checkpoint) -> None:
    """Checks everything below.

    Raises:
        CheckpointError: Two files do not belong together.
    """
    check_sizes(checkpoint)
    tokenizer_fit(checkpoint)
    stored_dimension(checkpoint)
    stored_temperature(checkpoint)


def check_sizes(checkpoint: Checkpoint) -> None:
    """Compares the sizes in config.json with the shapes of the weights. Raises CheckpointError."""
    weights = checkpoint.weights()
    for name, (section, field, default) in _SIZES.items():
        fields = checkpoint.config if section is None else checkpoint.config.get(section) or {}
        expected = fields.get(field, default)
        if name in weights and weights[name].shape[:1] != (expected,):
            path = field if section is None else f"{section}.{field}"
            raise CheckpointError(
                f"config.json: {path} is {expected!r}, but the weight {name} has {_first(weights[name])} "
                "rows; the file belongs to other weights"
            )


def tokenizer_fit(checkpoint: Checkpoint) -> TokenizerFit:
    """Compares the tokenizer's ids with the rows of the word embeddings.

    Raises:
        CheckpointError: A token that every text needs, or the unknown token, has no row; or a limit on the
            length of texts is not a number above 0.
    """
    path, limit = checkpoint.tokenizer_file(), max_text_tokens(checkpoint)
    stored = checkpoint.weights().get(WORD_EMBEDDINGS)
    rows = None if stored is None else _first(stored)
    vocabulary, needed = _vocabulary(path)
    unembedded = () if rows is None else unembedded_tokens(vocabulary, needed, rows)
    return TokenizerFit(len(vocabulary), rows, unembedded, limit)


def unembedded_tokens(
    vocabulary: Mapping[str, int], needed: Iterable[int | None], rows: int
) -> tuple[str, ...]:
    """Returns the tokens without a row in the word embeddings, by id.

    Args:
        vocabulary: Ids by token.
        needed: Ids of the tokens that are part of every text, and of the unknown token.
        rows: Of the word embeddings.

    Raises:
        CheckpointError: A needed token has no row.
    """
    beyond = {index: token for token, index in vocabulary.items() if index >= rows}
    fatal = [beyond[index] for index in needed if index in beyond]
    if fatal:
        raise CheckpointError(
            f"the token {fatal[0]!r} has an id beyond the {rows} rows of the word embeddings (vocab_size); "
            "the tokenizer belongs to another model, or the embeddings were not resized with it"
        )
    return tuple(token for _, token in sorted(beyond.items()))


def stored_dimension(checkpoint: Checkpoint) -> int | None:
    """Returns the number of elements of an embedding; None if the weights do not tell.

    Raises:
        CheckpointError: Images and texts would have different numbers.
    """
    weights = checkpoint.weights()
    blocks = [name for name in weights if name.endswith(_LAST_CONVOLUTION.partition("{}.")[2])]
    last = _LAST_CONVOLUTION.format(len(blocks) - 1)
    if _TEXT_PROJECTION not in weights or last not in weights:
        return None
    text = _first(weights[_TEXT_PROJECTION])
    check_dimensions(_first(weights[last]), text)
    return text


def check_dimensions(image: int, text: int) -> None:
    """Raises CheckpointError if the embeddings of images and of texts have different dimensions."""
    if image != text:
        raise CheckpointError(
            f"images have {image} dimensions, but texts {text}; "
            "projection_dim must equal the channels of the last vision block"
        )


def stored_temperature(checkpoint: Checkpoint) -> float | None:
    """Returns the temperature; None if there is none, or it is of an unusual type.

    Raises:
        CheckpointError: It is not a valid divisor.
    """
    stored = checkpoint.weights().get(_TEMPERATURE)
    if stored is None or math.prod(stored.shape) != 1:
        return None
    if stored.dtype == "BF16":  # the upper half of a float32
        value = float(np.frombuffer(b"\0\0" + stored.read(), "<f4")[0])
    elif stored.dtype in _NUMBERS:
        value = float(np.frombuffer(stored.read(), _NUMBERS[stored.dtype])[0])
    else:
        return None
    check_temperature(value)
    return value


def check_temperature(value: float) -> None:
    """Raises CheckpointError if cosines cannot be divided by the temperature, as float32."""
    with np.errstate(all="ignore"):
        largest = np.float32(2.0) / np.float32(value)
    if not value > 0 or not np.isfinite(largest) or not math.isfinite(value):
        raise CheckpointError(f"the weight temperature is {value:g}; it divides cosines, and must be above 0")


def _vocabulary(path: Path) -> tuple[Mapping[str, int], list[int | None]]:
    """Returns the ids by token, and those of the tokens of every text and of the unknown token."""
    if path.suffix != ".json":  # a token per line
        return {token: index for index, token in enumerate(read_text(path).splitlines())}, []
    tokenizer = parse_tokenizer(read_text(path), path)
    in_every_text = tokenizer.post_process(Encoding.merge([])).ids
    return tokenizer.get_vocab(), [*in_every_text, unknown_id(tokenizer)]


def _first(weight: StoredWeight) -> int:
    return weight.shape[0] if weight.shape else 0
