"""The package's exports, and the cost of importing it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires

import alignserve
import alignserve.errors

HEAVY = ("torch", "transformers", "PIL", "pydantic", "prometheus_client", "alignserve_server")


def test_exports_are_pinned() -> None:
    """Public names change only together with this list."""
    assert alignserve.__all__ == [
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


def test_every_exported_name_exists() -> None:
    """Each name of `__all__` can be imported."""
    assert all(hasattr(alignserve, name) for name in alignserve.__all__)


def test_importing_the_client_imports_nothing_of_the_server() -> None:
    """The client, its command and its fake server import none of the server's dependencies."""
    code = "import sys, alignserve.cli, alignserve.testing; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert not set(HEAVY) & {name.partition(".")[0] for name in loaded.split()}


def test_asyncio_client_has_the_surface_of_the_blocking_one() -> None:
    """Every public method of one client is a method of the other."""

    def surface(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert surface(alignserve.AsyncClient) == surface(alignserve.Client)


def test_the_base_install_is_only_the_client() -> None:
    """`pip install alignserve` installs only the client's dependencies; all others are extras."""
    base = {
        re.split(r"[^\w-]", requirement, maxsplit=1)[0]
        for requirement in requires("alignserve") or ()
        if "extra ==" not in requirement
    }

    assert base == {"grpcio", "protobuf", "googleapis-common-protos", "numpy"}
