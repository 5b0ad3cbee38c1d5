"""A port for several processes that share it by SO_REUSEPORT, and for nobody else."""

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
def reserved_port(listen: str) -> Iterator[int]:
    """Holds HOST:PORT, at every address of the host, and yields the port; nothing is received there.

    Meanwhile processes of the same user can listen there with SO_REUSEPORT. Whoever comes without it, or to
    reserve the port as well, cannot.

    Raises:
        StartupError: The port is taken or the address is not this machine's.
    """
    with ExitStack() as held:
        try:
            port = _hold_all(*host_and_port(listen), held)
        except OSError as error:
            raise StartupError(
                f"cannot listen on {listen}: {error.strerror}; choose another address with --listen"
            ) from error
        yield port


def _hold_all(host: str, port: int, held: ExitStack) -> int:
    found = socket.getaddrinfo(present_host(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((family, address[0], address[2:]) for family, *_, address in found)
    holders = 0
    for family, name, scope in addresses:
        if _is_here(family, (name, 0, *scope)):
            holder = held.enter_context(_held(family, (name, port, *scope)))
            port = holder.getsockname()[1]  # if it was 0, all take what the first one got
            holders += 1
    if not holders:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return port


def _is_here(family: int, address: tuple[object, ...]) -> bool:
    """Says whether the machine has an address, as localhost's ::1 where IPv6 is off it has not."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def _held(family: int, address: tuple[object, ...]) -> socket.socket:
    """Returns a bound socket. The order of its steps leaves no moment in which two could hold one port."""
    with _socket(family) as first:
        first.bind(address)
        first.listen()  # fails beside any other that listens; binding alone does not
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder = _socket(family)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(first.getsockname())
        # It was needed to bind beside connections of an earlier server that are still closing; without it
        # from here on, nobody can do the same to this one.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return holder


def _socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # as gRPC: [::] takes IPv4 too
    return made
