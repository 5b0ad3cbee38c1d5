"""The caller and priority of a gRPC call, from its metadata and connection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import unquote

from alignserve_server.api import CallScope, FieldPaths
from alignserve_server.observability.caller_metrics import CERTIFICATE

PRIORITY_KEY = "alignserve-priority"
_CREDENTIAL_KEY = "authorization"

Metadata = Iterable[tuple[str, Any]]


class Transport(Protocol):
    """The part of a gRPC call's context that is used here, whichever server accepted the call."""

    def invocation_metadata(self) -> Metadata | None: ...

    def peer(self) -> str: ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...


class KnownTransport:
    """A transport that is asked only once: gRPC makes new strings each time."""

    __slots__ = ("_metadata", "_peer", "_transport")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._metadata: Metadata | None = None
        self._peer: str | None = None

    def invocation_metadata(self) -> Metadata:
        if self._metadata is None:
            self._metadata = tuple(self._transport.invocation_metadata() or ())
        return self._metadata

    def peer(self) -> str:
        if self._peer is None:
            self._peer = self._transport.peer()
        return self._peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self._transport.auth_context()


_current: ContextVar[tuple[CallScope, Transport]] = ContextVar("call")


def current_call() -> CallScope:
    """Returns the call that this task serves."""
    return _current.get()[0]


def current_transport() -> Transport:
    """Returns the connection and metadata of the call that this task serves."""
    return _current.get()[1]


def enter_call(call: CallScope, transport: Transport) -> None:
    """Sets the call that this task serves."""
    _current.set((call, transport))


class GrpcCall:
    """An `api.IncomingCall` without a deadline, for which all errors are unexpected."""

    paths = FieldPaths(priority=f"metadata {PRIORITY_KEY}")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def metadata(self) -> Metadata:
        return self._transport.invocation_metadata() or ()

    def credentials(self) -> Iterable[str]:
        return (value for key, value in self.metadata() if key == _CREDENTIAL_KEY and isinstance(value, str))

    def priority(self) -> str | None:
        for key, value in self.metadata():
            if key == PRIORITY_KEY:
                return str(value)
        return None

    def peer(self) -> str:
        """Returns the caller's name: from its certificate if there is one, otherwise its host.

        All calls from a host belong to one caller, whichever connections they use.
        """
        for certified in self._transport.auth_context().get("x509_common_name", ()):
            return f"{CERTIFICATE}{certified.decode(errors='replace')}"
        return _host(self._transport.peer())

    def seconds_left(self) -> float | None:
        return None

    def code_of(self, error: BaseException) -> str | None:  # noqa: ARG002 — for subclasses
        return None


@lru_cache(maxsize=1024)
def _host(peer: str) -> str:
    """Returns the host of a peer, for example ipv4:127.0.0.1:41234, ipv6:%5B::1%5D:41234 or unix:."""
    peer = unquote(peer)
    host, separator, port = peer.rpartition(":")
    return host if separator and port.isdecimal() else peer
