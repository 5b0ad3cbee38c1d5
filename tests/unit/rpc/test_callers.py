"""Callers are told apart by host."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from alignserve_server.rpc.callers import caller_of


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
    """All connections of a host are one caller."""
    assert caller_of(Mock(peer=lambda: peer, auth_context=dict)) == caller


def test_a_caller_with_a_certificate_is_its_common_name() -> None:
    """From whichever host."""
    context = Mock(peer=lambda: "ipv4:10.1.2.3:50123", auth_context=lambda: {"x509_common_name": [b"search"]})

    assert caller_of(context) == "certificate:search"
