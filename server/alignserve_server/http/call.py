"""The facts about a call that the headers and the connection of its request tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from alignserve_server.api import FieldPaths
from alignserve_server.http.timeouts import TIMEOUT_MS, timeout_seconds
from alignserve_server.observability.caller_metrics import CERTIFICATE
from alignserve_server.rpc.callers import PRIORITY_KEY

CERTIFICATE_NAME = (
    "certificate_name"  # in the state of an ASGI scope: the common name of the client's certificate
)

FIELD_PATHS = FieldPaths(priority=f"header {PRIORITY_KEY}")


class Disconnected(Exception):
    """The client has gone, so there is no one to answer."""


class HttpCall:
    """An `api.IncomingCall` from an ASGI scope."""

    def __init__(
        self, scope: Scope, *, timeout_header: str = TIMEOUT_MS, paths: FieldPaths = FIELD_PATHS
    ) -> None:
        self.paths = paths  # a dialect may replace it once it knows the form of the request
        self.headers = Headers(scope=scope)
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()
        self._timeout_header = timeout_header
        self._timeout: float | None = None  # in seconds; set by `read_timeout`

    def read_timeout(self) -> None:
        """Reads the caller's timeout, which counts from the arrival of the headers.

        Raises:
            InvalidArgument: It is malformed.
        """
        value = self.headers.get(self._timeout_header)
        self._timeout = None if value is None else timeout_seconds(self._timeout_header, value)

    def credentials(self) -> Iterable[str]:
        return self.headers.getlist("authorization")

    def peer(self) -> str:
        """Returns the caller's name, the same as over gRPC: from its certificate, otherwise its host."""
        if (name := self._scope["state"].get(CERTIFICATE_NAME)) is not None:
            return f"{CERTIFICATE}{name}"
        client = self._scope.get("client")
        return "unix:" if client is None else _host(client[0])

    def priority(self) -> str | None:
        return self.headers.get(PRIORITY_KEY)

    def seconds_left(self) -> float | None:
        if self._timeout is None:
            return None
        return self._start + self._timeout - self._loop.time()

    def metadata(self) -> Iterable[tuple[str, Any]]:
        return self.headers.items()

    def code_of(self, error: BaseException) -> str | None:
        return "CANCELLED" if isinstance(error, Disconnected) else None


def _host(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return f"ipv6:[{host}]"
        address = address.ipv4_mapped
    return f"ipv4:{address}"
