"""The models that clients see: names, tensors and parameters. All are views of the one ALIGN model.

The protocol has no optional inputs, so images, texts, labels and pairs are models of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignserve_server.api import ANY_SCOPE, ModelInfo, Scope
from alignserve_server.errors import ModelUnknown
from alignserve_server.kserve.problems import shown, unknown

VERSION = "1"

_ANY = -1  # in a shape
_EMBEDDING = 0  # in a shape, stands for the embedding dimension, which is known once the model is loaded

# Of every model, in addition to its own.
REQUEST_PARAMETERS = frozenset({"priority", "timeout", "triton_enable_empty_final_response"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def shape_with(self, info: ModelInfo) -> list[int]:
        """Returns the shape, in which -1 stands for any size."""
        return [info.embedding_dimension if size == _EMBEDDING else size for size in self.shape]


@dataclass(frozen=True, slots=True)
class Output(Tensor):
    """An output of a model."""

    is_default: bool = True  # whether it is in the response to a request that names no outputs
    has_labels: bool = False  # whether its best elements can be asked for with their labels


@dataclass(frozen=True, slots=True)
class Model:
    """A model's name, its tensors, and the rules for its requests."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Output, ...]
    parameters: frozenset[str]
    scopes: frozenset[Scope]  # a key needs one of them
    is_batched: bool = True  # whether the first dimension of all tensors is that of the batch


_EMBEDDINGS = (
    Output("embedding", "FP32", (_ANY, _EMBEDDING)),
    Output("embedding_fp16", "FP16", (_ANY, _EMBEDDING), is_default=False),
)
# [N, 1] is the shape that Triton's clients give to a batch of single values. [N] is accepted as well.
_IMAGE, _TEXT = Tensor("image", "BYTES", (_ANY, 1)), Tensor("text", "BYTES", (_ANY, 1))

IMAGE = Model(
    "image",
    (_IMAGE,),
    _EMBEDDINGS,
    frozenset({"skip_normalization"}),
    frozenset({Scope.EMBED}),
)
TEXT = Model(
    "text",
    (_TEXT,),
    _EMBEDDINGS,
    frozenset({"skip_normalization", "truncate"}),
    frozenset({Scope.EMBED}),
)
CLASSIFY = Model(
    "classify",
    (Tensor("image", "BYTES", (_ANY,)), Tensor("labels", "BYTES", (_ANY,))),
    (
        Output("scores", "FP32", (_ANY, _ANY), has_labels=True),
        Output("similarity", "FP32", (_ANY, _ANY), has_labels=True),
        Output("logits", "FP32", (_ANY, _ANY), has_labels=True),
        Output("label_index", "INT32", (_ANY, _ANY)),
    ),
    frozenset({"prompt_template", "prompt_templates", "top_k"}),
    frozenset({Scope.CLASSIFY}),
    is_batched=False,
)
COMPARE = Model(
    "compare",
    (_IMAGE, _TEXT),
    (Output("similarity", "FP32", (_ANY,)), Output("logits", "FP32", (_ANY,))),
    frozenset({"truncate"}),
    frozenset({Scope.EMBED, Scope.CLASSIFY}),
)

MODELS = {model.name: model for model in (IMAGE, TEXT, CLASSIFY, COMPARE)}


def scopes_of(name: str) -> frozenset[Scope]:
    """Returns the scopes of a model, of which a key needs one; every scope if there is no such model."""
    return MODELS[name].scopes if name in MODELS else ANY_SCOPE


def find_model(name: str, version: str) -> Model:
    """Returns the model of a name and version, where no version stands for any.

    Raises:
        ModelUnknown: There is none.
    """
    if name not in MODELS:
        raise ModelUnknown(f"model_name: {unknown('model', name, MODELS)}")
    if version not in ("", VERSION):
        raise ModelUnknown(f"model_version: unknown version {shown(version)}; send {VERSION!r} or none")
    return MODELS[name]
