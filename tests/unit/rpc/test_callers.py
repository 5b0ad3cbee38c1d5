"""Callers are identified by host or certificate, and send their key and priority as metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from alignserve_server.rpc.callers import GrpcCall, Metadata


class Transport:
    """Returns the given peer, certificate names and metadata."""

    def __init__(self, peer: str = "unix:", *names: bytes, metadata: Metadata | None = None) -> None:
        self._peer, self._names, self._metadata = peer, names, metadata

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {"x509_common_name": self._names} if self._names else {}

    def invocation_metadata(self) -> Metadata | None:
        return self._metadata


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("ipv4:127.0.0.1:41234", "ipv4:127.0.0.1"),
        ("ipv6:%5B::1%5D:41234", "ipv6:[::1]"),
        ("unix:", "unix:"),
        ("unix:/run/alignserve.sock", "unix:/run/alignserve.sock"),
    ],
)
def test_a_caller_is_a_host(peer: str, caller: str) -> None:
    """All connections from a host belong to one caller."""
    assert GrpcCall(Transport(peer)).peer() == caller


def test_a_caller_with_a_certificate_is_its_common_name() -> None:
    """The host does not matter then."""
    assert GrpcCall(Transport("ipv4:10.1.2.3:50123", b"search")).peer() == "certificate:search"


def test_the_first_priority_counts_and_credentials_are_text() -> None:
    """Bytes, which gRPC passes for some names, are ignored."""
    metadata = [
        ("authorization", b"Bearer a"),
        ("authorization", "Bearer b"),
        ("alignserve-priority", "bulk"),
        ("alignserve-priority", "interactive"),
    ]
    call = GrpcCall(Transport(metadata=metadata))

    assert (call.priority(), list(call.credentials())) == ("bulk", ["Bearer b"])


def test_a_call_without_metadata_has_no_priority_or_key() -> None:
    """gRPC passes missing metadata as None."""
    call = GrpcCall(Transport())

    assert (call.priority(), list(call.credentials()), list(call.metadata())) == (None, [], [])
