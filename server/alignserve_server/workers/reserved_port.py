"""Reserves a port that several processes of one server share by SO_REUSEPORT."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from alignserve_server.errors import StartupError
from alignserve_server.host.addresses import present_host
from alignserve_server.settings import host_and_port


@contextmanager
def reserved_port(listen: str, flag: str = "--listen") -> Iterator[int]:
    """Holds HOST:PORT, at every address of the host, and yields the port; nothing is received there.

    Processes of the same user can listen there with SO_REUSEPORT. Without it, or to reserve the port too,
    other processes cannot.

    Raises:
        StartupError: The port is in use or the address is not one of this machine.
    """
    with ExitStack() as held:
        try:
            port = _hold_all(*host_and_port(listen), held)
        except OSError as error:
            raise StartupError(
                f"cannot listen on {listen}: {error.strerror}; choose another address with {flag}"
            ) from error
        yield port


def _hold_all(host: str, port: int, held: ExitStack) -> int:
    found = socket.getaddrinfo(present_host(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((family, address[0], address[2:]) for family, *_, address in found)
    holders = 0
    for family, name, scope in addresses:
        if _is_here(family, (name, 0, *scope)):
            holder = held.enter_context(_held(family, (name, port, *scope)))
            port = holder.getsockname()[1]  # if it was 0, all use the port of the first one
            holders += 1
    if not holders:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return port


def _is_here(family: int, address: tuple[object, ...]) -> bool:
    """Returns whether the machine has an address; without IPv6, for example, it does not have ::1."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def _held(family: int, address: tuple[object, ...]) -> socket.socket:
    """Returns a bound socket. The order of the steps leaves no race in which two hold one port."""
    with _socket(family) as first:
        first.bind(address)
        first.listen()  # fails if another process listens; bind() would not
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder = _socket(family)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(first.getsockname())
        # It was needed to bind while connections of an earlier server are still closing; from here on it
        # would let another process bind the same port.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return holder


def _socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # as gRPC: [::] takes IPv4 too
    return made
