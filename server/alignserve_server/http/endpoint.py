"""What is served at a path: the endpoints of each dialect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from alignserve_server.api import CallScope, FieldPaths, MethodRules
from alignserve_server.http.answer import JSON, Answer
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.status import HttpError
from alignserve_server.http.stream import HttpStream


class Dialect(Protocol):
    """What endpoints of one kind have in common."""

    @property
    def name(self) -> str:
        """The label `grpc_service` of its metrics."""
        ...

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The beginnings of paths below which unknown ones are refused in its shape."""
        ...

    @property
    def timeout_header(self) -> str:
        """The header with the caller's timeout: one of `http.timeouts`."""
        ...

    @property
    def paths(self) -> FieldPaths:
        """What errors call the fields, unless `HttpRequest.name_fields` says otherwise."""
        ...

    def error(self, error: HttpError) -> Answer:
        """Returns an error in the shape of this dialect; general headers are added later."""
        ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of a dialect: an HTTP method at a path, for some types of bodies.

    Attributes:
        path: In Starlette's form, such as `/v1/models/{model}`.
        http_methods: For example `("POST",)`; HEAD is answered wherever GET is.
        dialect: The dialect that it belongs to.
        name: The label `grpc_method` of its metrics.
        rules: Scopes and accounting.
        answer: Answers an admitted request; raises `ServingError`.
        media_types: The types of bodies that it takes; a request without a type counts as JSON.
    """

    path: str
    http_methods: tuple[str, ...]
    dialect: Dialect
    name: str
    rules: MethodRules
    answer: Callable[[HttpRequest, CallScope], Awaitable[Answer]]
    media_types: frozenset[str] = frozenset({JSON})


@dataclass(frozen=True, slots=True)
class StreamEndpoint:
    """One streaming method of a dialect, like `Endpoint`.

    Attributes:
        run: Answers an admitted stream until it ends; raises `ServingError`. The dialect's `error` is then
            written after the answers so far.
        end: The bytes after the last answer of a stream that succeeded.
    """

    path: str
    dialect: Dialect
    name: str
    rules: MethodRules
    run: Callable[[HttpStream, CallScope], Awaitable[None]]
    end: bytes
    media_types: frozenset[str]
    http_methods: tuple[str, ...] = ("POST",)
