"""The HTTP port: accepts connections on the server's own event loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from starlette.types import ASGIApp
from uvicorn.config import Config

from alignserve_server.errors import StartupError
from alignserve_server.host.addresses import present_host
from alignserve_server.http.connection import Connection, ConnectionLimits, Connections, announcing_ends
from alignserve_server.settings import host_and_port

_BACKLOG = 2048
_HANDSHAKE_SECONDS = 10.0
_FLUSH_SECONDS = 1.0  # for answers that have been written to be read


class HttpPort:
    """Accepts connections and passes their requests to an app."""

    def __init__(self, app: ASGIApp, limits: ConnectionLimits) -> None:
        self._config = Config(
            announcing_ends(app),
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=limits.idle_timeout_seconds,  # type: ignore[arg-type]  # `call_later` takes it
        )
        self._config.load()
        self._connections = Connections(limits)
        self._servers: list[asyncio.Server] = []
        self.port = 0

    async def open(self, listen: str, *, is_shared: bool, tls: ssl.SSLContext | None) -> None:
        """Listens on HOST:PORT, at every address of the host.

        Args:
            listen: The address; port 0 picks a free one.
            is_shared: Whether other processes listen on it too, with SO_REUSEPORT.
            tls: The TLS context; None for plain text.

        Raises:
            StartupError: The port is in use or the address is not one of this machine.
        """
        handshake_seconds = None if tls is None else _HANDSHAKE_SECONDS
        loop = asyncio.get_running_loop()
        try:
            with ExitStack() as opened:
                for bound in _sockets(listen, is_shared=is_shared):
                    opened.enter_context(bound)
                    self.port = bound.getsockname()[1]
                    server = await loop.create_server(
                        lambda: Connection(self._config, self._connections),
                        sock=bound,
                        backlog=_BACKLOG,
                        ssl=tls,
                        ssl_handshake_timeout=handshake_seconds,
                    )
                    self._servers.append(server)
                opened.pop_all()
        except OSError as error:
            raise StartupError(
                f"cannot listen on {listen}: {error.strerror}; choose another address with --http-listen"
            ) from error

    def drain(self) -> None:
        """From now on, every answer ends its connection."""
        self._connections.is_draining = True

    async def close(self) -> None:
        """Stops listening and ends all connections: idle ones at once, others after their answer.

        Connections whose client does not read for a second are cut.
        """
        self.drain()
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.shutdown()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._connections.none_left.wait(), _FLUSH_SECONDS)
        for connection in self._connections:
            connection.transport.abort()


def _sockets(listen: str, *, is_shared: bool) -> Iterator[socket.socket]:
    """Yields bound sockets, one for each address of the host; if the port is 0, all get the same one."""
    host, port = host_and_port(listen)
    found = socket.getaddrinfo(present_host(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, address in dict.fromkeys((family, address) for family, *_, address in found):
        bound = _bound(family, (address[0], port, *address[2:]), is_shared=is_shared)
        port = bound.getsockname()[1]
        yield bound


def _bound(family: int, address: tuple[object, ...], *, is_shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # as in gRPC: IPv4 too
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
