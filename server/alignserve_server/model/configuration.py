"""Checks a checkpoint's config.json: refuses unsupported values of fields that would change embeddings.

`server/docs/checkpoints.md` lists how every field of transformers' configuration classes is handled; a test
compares it with the classes and with the checks here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from alignserve_server.model.checkpoint import CheckpointError, Json

_Test: TypeAlias = Callable[[Any, Json], bool]  # takes a value and the section that contains it


@dataclass(frozen=True, slots=True)
class Requirement:
    """Which values of a field can be served; transformers' default for a missing field always can."""

    is_met: _Test
    supported: str
    reason: str


def _is_absent(value: Any, _section: Json) -> bool:
    return not value


def _is_positive(value: Any, _section: Json) -> bool:
    return isinstance(value, int) and value > 0


def _is_row(value: Any, section: Json) -> bool:
    rows = section.get("vocab_size", _DEFAULT_VOCABULARY)
    return value is None or (isinstance(value, int) and -rows <= value < rows)


def _are_blocks(value: Any, _section: Json) -> bool:
    return isinstance(value, list) and any(isinstance(repeats, int) and repeats > 0 for repeats in value)


_DEFAULT_VOCABULARY = 30522  # vocab_size of transformers' AlignTextConfig
_AT_LEAST_ONE = "a whole number above 0"
_ABSENT = "false, or leaving it out"
_IGNORED = "transformers 5 ignores it, and the weights were trained with it"

REQUIREMENTS: Mapping[str, Mapping[str, Requirement]] = {
    "": {
        "quantization_config": Requirement(
            _is_absent,
            "leaving it out",
            "weights are read as they are; save them in float32, float16 or bfloat16",
        ),
    },
    "text_config": {
        "vocab_size": Requirement(_is_positive, _AT_LEAST_ONE, "every text has tokens"),
        "type_vocab_size": Requirement(_is_positive, _AT_LEAST_ONE, "every token is of type 0"),
        "max_position_embeddings": Requirement(_is_positive, _AT_LEAST_ONE, "every token has a position"),
        "num_hidden_layers": Requirement(
            _is_positive, _AT_LEAST_ONE, "without a layer every text has the same embedding"
        ),
        "pad_token_id": Requirement(
            _is_row, "null, or a row of the word embeddings", "transformers has no such embeddings"
        ),
        "position_embedding_type": Requirement(
            lambda value, _: value in (None, "absolute"), "'absolute'", _IGNORED
        ),
        "is_decoder": Requirement(_is_absent, _ABSENT, _IGNORED),
        "add_cross_attention": Requirement(_is_absent, _ABSENT, _IGNORED),
    },
    "vision_config": {
        "num_channels": Requirement(lambda value, _: value == 3, "3", "images are read as RGB"),
        "pooling_type": Requirement(
            lambda value, _: value in ("mean", "max"), "'mean' and 'max'", "AlignModel has no other"
        ),
        "num_block_repeats": Requirement(
            _are_blocks, "a list with a number above 0", "embeddings are those of the last block"
        ),
    },
}


def check_configuration(config: Json) -> None:
    """Checks the fields that can be checked without the weights.

    Raises:
        CheckpointError: A field has an unsupported value; names the field, the value and the supported ones.
    """
    for name, requirements in REQUIREMENTS.items():
        section = config.get(name) or {} if name else config
        if not isinstance(section, Mapping):
            raise CheckpointError(f"config.json: {name} is not a JSON object")
        for field, requirement in requirements.items():
            if field in section and not requirement.is_met(section[field], section):
                path = f"{name}.{field}" if name else field
                raise CheckpointError(
                    f"config.json: {path} is {section[field]!r}, which is not supported "
                    f"({requirement.reason}); supported: {requirement.supported}"
                )
