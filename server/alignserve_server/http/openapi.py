"""The OpenAPI document of the HTTP port."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from alignserve_server.api import CallScope, MethodRules, Service
from alignserve_server.http.answer import JSON, Answer
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.plain import PLAIN
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.schemas import JsonSchema

_RULES = MethodRules(scopes=None, is_metered=False, is_traced=False)
_PARAMETER = re.compile(r"\{(\w+)(:\w+)?\}")
_ERRORS = {"4XX": "The request is refused.", "5XX": "The server cannot answer now, or failed."}


@dataclass(frozen=True, slots=True)
class Operation:
    """One HTTP method at a path, as clients see it.

    Attributes:
        path: In Starlette's form.
        method: The HTTP method.
        summary: What it does, for people.
        response: The schema of the answer; None if it has no body.
        request: The schema of the body; None if there is none.
        is_open: Whether it needs no key.
        query: Required parameters behind the question mark, by name.
    """

    path: str
    method: str
    summary: str
    response: JsonSchema | None
    request: JsonSchema | None = None
    is_open: bool = False
    query: Mapping[str, JsonSchema] = field(default_factory=dict)


class Described(Protocol):
    """A dialect that describes its operations."""

    @property
    def name(self) -> str:
        """The name of the dialect, by which operations are grouped."""
        ...

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations."""
        ...

    @property
    def error_schema(self) -> JsonSchema:
        """The schema of its errors."""
        ...


class OpenApi:
    """Serves the document at `/openapi.json`."""

    def __init__(self, service: Service, dialects: Iterable[Described]) -> None:
        self._document = document(dialects, service.server_version)

    def endpoints(self) -> list[Endpoint]:
        """Returns what is served at which path."""
        return [Endpoint("/openapi.json", ("GET",), PLAIN, "openapi", _RULES, self._answer)]

    async def _answer(self, _: HttpRequest, __: CallScope) -> Answer:
        return Answer.json(self._document)


def document(dialects: Iterable[Described], version: str) -> dict[str, Any]:
    """Returns the OpenAPI document of these dialects."""
    paths: dict[str, Any] = {}
    for dialect in dialects:
        for operation in dialect.operations:
            path = _PARAMETER.sub(r"{\1}", operation.path)
            paths.setdefault(path, {})[operation.method.lower()] = _described(dialect, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "alignserve",
            "version": version,
            "description": "Embeddings of images and texts, and zero-shot classification, in several APIs.",
        },
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _described(dialect: Described, operation: Operation) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name, _ in _PARAMETER.findall(operation.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": True, "schema": schema}
        for name, schema in operation.query.items()
    ]
    content = {} if operation.response is None else {"content": {JSON: {"schema": operation.response}}}
    status = "200" if operation.response is not None or operation.path == "/health" else "204"
    errors = {
        code: {"description": text, "content": {JSON: {"schema": dialect.error_schema}}}
        for code, text in _ERRORS.items()
    }
    described: dict[str, Any] = {
        "tags": [dialect.name],
        "summary": operation.summary,
        "responses": {status: {"description": "The answer.", **content}, **errors},
        "security": [] if operation.is_open else [{}, {"key": []}],
    }
    if parameters:
        described["parameters"] = parameters
    if operation.request is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": operation.request}}}
    return described
