"""The wildcard address, for the address families that the kernel supports."""

from __future__ import annotations

import errno
import socket

_ALL_IPV6, _ALL_IPV4 = "::", "0.0.0.0"  # noqa: S104 — where to listen is the operator's choice


def present_host(host: str) -> str:
    """Returns the host to listen on: 0.0.0.0 instead of [::] if the kernel has no IPv6.

    gRPC does the same for its port, so a container image can always use [::].
    """
    return _ALL_IPV4 if host == _ALL_IPV6 and not _has_ipv6() else host


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM):
            return True
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
