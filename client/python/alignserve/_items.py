"""The items and results of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from alignserve._images import ImageInput
from alignserve._queries import Query
from alignserve._results import Classification, Comparison, EmbeddingArray, Tokenization
from alignserve.errors import AlignserveError

Dtype: TypeAlias = Literal["float32", "float16", "int8", "binary"]
"""Of embeddings: `int8` needs a quarter of the bytes of `float32`, and `binary`, a bit per number, a 32nd."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Keyed:
    id: Any = None  # the caller's own key, of any type; it need not be unique and is not sent


@dataclass(frozen=True, slots=True, eq=False)
class ImageItem(_Keyed):
    """An image to embed in a stream.

    Attributes:
        image: A path, the bytes of a file, a file opened in binary mode, a Pillow image, or uint8 pixels.
        normalize: Scale the embedding to length 1.
        dtype: Data type of the embedding, as for `Client.embed_image`.
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
        dtype: Data type of the embedding, as for `Client.embed_image`.
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


@dataclass(frozen=True, slots=True, eq=False)
class CompareItem(_Keyed):
    """An image and a text to compare in a stream.

    Attributes:
        image: A path, the bytes of a file, a file opened in binary mode, a Pillow image, or uint8 pixels.
        text: The text.
        truncate: Truncate a text that is too long, instead of failing the pair.
        id: The caller's own key, of any type. It is not sent to the server.
    """

    image: ImageInput
    text: str
    truncate: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class QueryItem(_Keyed):
    """A composed query to embed in a stream.

    Attributes:
        query: Its terms, as for `Client.embed_query`.
        truncate: Truncate texts that are too long, instead of failing the query.
        normalize: Scale the embedding to length 1.
        dtype: Data type of the embedding, as for `Client.embed_image`.
        id: The caller's own key, of any type. It is not sent to the server.
    """

    query: Query
    truncate: bool = False
    normalize: bool = True
    dtype: Dtype = "float32"


Item: TypeAlias = ImageItem | TextItem | ClassifyItem | CompareItem | QueryItem
"""An item of a stream."""

Value: TypeAlias = EmbeddingArray | list[Classification] | Comparison


@dataclass(frozen=True, slots=True, eq=False)
class StreamResult:
    """The result of one item of a stream.

    Attributes:
        item: The item, as given.
        value: Its embedding, (embedding_dimension,), its classifications, best first, or its comparison.
            `None` if it failed.
        error: Why it failed, or `None`.
        tokenization: How the text was tokenized, for a `TextItem` or `CompareItem` that succeeded.
        int8_scale: For an embedding in int8: times this, it is the embedding in floats.
    """

    item: Item
    value: Value | None = None
    error: AlignserveError | None = None
    tokenization: Tokenization | None = None
    int8_scale: float | None = None

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
        """Returns the embedding, or raises the error; `TypeError` for items without one."""
        if isinstance(self.item, ClassifyItem):
            raise TypeError("a ClassifyItem has no embedding; use classifications")
        if isinstance(self.item, CompareItem):
            raise TypeError("a CompareItem has no embedding; use comparison")
        return cast("EmbeddingArray", self.result())

    @property
    def classifications(self) -> list[Classification]:
        """Returns the classifications, or raises the error; `TypeError` for other items."""
        if not isinstance(self.item, ClassifyItem):
            use = "comparison" if isinstance(self.item, CompareItem) else "embedding"
            raise TypeError(f"{type(self.item).__name__} has no classifications; use {use}")
        return cast("list[Classification]", self.result())

    @property
    def comparison(self) -> Comparison:
        """Returns the comparison, or raises the error; `TypeError` for other items."""
        if not isinstance(self.item, CompareItem):
            use = "classifications" if isinstance(self.item, ClassifyItem) else "embedding"
            raise TypeError(f"{type(self.item).__name__} has no comparison; use {use}")
        return cast("Comparison", self.result())
