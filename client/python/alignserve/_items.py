"""The items and results of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from alignserve._images import ImageInput
from alignserve._results import Classification, EmbeddingArray, Tokenization
from alignserve.errors import AlignserveError

Dtype: TypeAlias = Literal["float32", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Keyed:
    id: Any = None  # the caller's own key, of any type; it need not be unique and is not sent


@dataclass(frozen=True, slots=True, eq=False)
class ImageItem(_Keyed):
    """An image to embed in a stream.

    Attributes:
        image: A path, the bytes of a file, a file opened in binary mode, a Pillow image, or uint8 pixels.
        normalize: Scale the embedding to length 1.
        dtype: Data type of the embedding; `float16` halves the bytes sent.
        id: The caller's own key, of any type. It is not sent to the server.
    """

    image: ImageInput
    normalize: bool = True
    dtype: Dtype = "float32"


@dataclass(frozen=True, slots=True, eq=False)
class TextItem(_Keyed):
    """A text to embed in a stream.

    Attributes:
        text: The text.
        truncate: Truncate a text that is too long, instead of failing it.
        normalize: Scale the embedding to length 1.
        dtype: Data type of the embedding; `float16` halves the bytes sent.
        id: The caller's own key, of any type. It is not sent to the server.
    """

    text: str
    truncate: bool = False
    normalize: bool = True
    dtype: Dtype = "float32"


@dataclass(frozen=True, slots=True, eq=False)
class ClassifyItem(_Keyed):
    """An image to classify in a stream.

    Attributes:
        image: A path, the bytes of a file, a file opened in binary mode, a Pillow image, or uint8 pixels.
        labels: Candidate labels.
        prompt_templates: Prompts with one `{label}` each; several are averaged.
        top_k: Maximum number of labels to return; 0 for all.
        id: The caller's own key, of any type. It is not sent to the server.
    """

    image: ImageInput
    labels: Sequence[str]
    prompt_templates: Sequence[str] = ()
    top_k: int = 0


Item: TypeAlias = ImageItem | TextItem | ClassifyItem
"""An item of a stream."""

Value: TypeAlias = EmbeddingArray | list[Classification]


@dataclass(frozen=True, slots=True, eq=False)
class StreamResult:
    """The result of one item of a stream.

    Attributes:
        item: The item, as given.
        value: Its embedding, (embedding_dimension,), or its classifications, best first. `None` if it failed.
        error: Why it failed, or `None`.
        tokenization: How the text was tokenized, for a `TextItem` that succeeded.
    """

    item: Item
    value: Value | None = None
    error: AlignserveError | None = None
    tokenization: Tokenization | None = None

    @property
    def id(self) -> Any:
        """Returns the item's own key."""
        return self.item.id

    def result(self) -> Value:
        """Returns the value, or raises the error."""
        if self.error is not None:
            raise self.error
        assert self.value is not None  # noqa: S101 — a result has a value or an error
        return self.value

    @property
    def embedding(self) -> EmbeddingArray:
        """Returns the embedding, or raises the error; `TypeError` for a `ClassifyItem`."""
        if isinstance(self.item, ClassifyItem):
            raise TypeError("a ClassifyItem has no embedding; use classifications")
        return cast("EmbeddingArray", self.result())

    @property
    def classifications(self) -> list[Classification]:
        """Returns the classifications, or raises the error; `TypeError` for other items."""
        if not isinstance(self.item, ClassifyItem):
            raise TypeError(f"{type(self.item).__name__} has no classifications; use embedding")
        return cast("list[Classification]", self.result())
