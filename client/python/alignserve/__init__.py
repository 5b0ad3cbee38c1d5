"""Client of alignserve: image and text embeddings and zero-shot classification over gRPC."""

# isort: off
from alignserve import _quiet  # noqa: F401 — before gRPC is imported
# isort: on

from importlib.metadata import version as _version

from alignserve._call_defaults import CallOptions
from alignserve._client import Client
from alignserve._client_async import AsyncClient
from alignserve._images import ImageInput
from alignserve._items import (
    ClassifyItem,
    CompareItem,
    ImageItem,
    Item,
    QueryItem,
    StreamResult,
    TextItem,
)
from alignserve._queries import Query, QueryTerm
from alignserve._results import (
    Classification,
    Comparison,
    Comparisons,
    ImageClassifications,
    ImageEmbeddings,
    InferenceStats,
    ModelInfo,
    QueryEmbeddings,
    TextEmbeddings,
    Tokenization,
)
from alignserve._retry import RetryPolicy
from alignserve.errors import (
    AlignserveError,
    CallCancelledError,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

__version__ = _version("alignserve")

__all__ = [
    "AlignserveError",
    "AsyncClient",
    "CallCancelledError",
    "CallOptions",
    "Classification",
    "ClassifyItem",
    "Client",
    "CompareItem",
    "Comparison",
    "Comparisons",
    "DeadlineExceededError",
    "FieldViolation",
    "ImageClassifications",
    "ImageEmbeddings",
    "ImageInput",
    "ImageItem",
    "InferenceStats",
    "InternalError",
    "InvalidArgumentError",
    "Item",
    "ModelInfo",
    "PermissionDeniedError",
    "Query",
    "QueryEmbeddings",
    "QueryItem",
    "QueryTerm",
    "ResourceExhaustedError",
    "RetryPolicy",
    "StreamResult",
    "TextEmbeddings",
    "TextItem",
    "Tokenization",
    "UnauthenticatedError",
    "UnavailableError",
    "__version__",
]
