"""Listening addresses on machines with and without IPv6."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any
from urllib.request import urlopen

import pytest
from alignserve_server.host.addresses import present_host
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.workers.reserved_port import reserved_port
from prometheus_client import CollectorRegistry


@pytest.fixture
def _no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes sockets fail as they do with the kernel option ipv6.disable=1."""
    make = socket.socket

    def without_ipv6(family: int = -1, *arguments: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return make(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", without_ipv6)


@pytest.mark.parametrize("host", ["::1", "127.0.0.1", "0.0.0.0", "localhost"])
def test_other_hosts_are_unchanged(host: str) -> None:
    """Only [::] depends on the kernel."""
    assert present_host(host) == host


@pytest.mark.usefixtures("_no_ipv6")
def test_without_ipv6_all_addresses_are_those_of_ipv4() -> None:
    """gRPC does the same for its port."""
    assert present_host("::") == "0.0.0.0"


@pytest.mark.usefixtures("_no_ipv6")
def test_workers_share_a_port_without_ipv6() -> None:
    """The address that the container image sets works there too."""
    with reserved_port("[::]:0") as port:
        assert port > 0


@pytest.mark.parametrize("kernel", ["_no_ipv6", "request"], ids=["without IPv6", "as it is"])
def test_metrics_are_served_over_ipv4_at_all_addresses(request: pytest.FixtureRequest, kernel: str) -> None:
    """This works with and without IPv6."""
    request.getfixturevalue(kernel)
    page = serve_metrics_page("[::]:0", CollectorRegistry(), lambda: "serving")
    try:
        with urlopen(f"http://127.0.0.1:{page.server_port}/metrics") as answer:
            assert answer.status == 200
    finally:
        page.shutdown()
        page.server_close()
