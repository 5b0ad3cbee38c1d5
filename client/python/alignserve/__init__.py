"""Client of alignserve: image and text embeddings and zero-shot classification over gRPC."""

# isort: off
from alignserve import _quiet  # noqa: F401 — before gRPC is imported
# isort: on

from importlib.metadata import version as _version

from alignserve._call_defaults import CallOptions
from alignserve._client import Client
from alignserve._client_async import AsyncClient
from alignserve._images import ImageInput
from alignserve._items import ClassifyItem, ImageItem, Item, StreamResult, TextItem
from alignserve._results import (
    Classification,
    ImageClassifications,
    ImageEmbeddings,
    InferenceStats,
    ModelInfo,
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
