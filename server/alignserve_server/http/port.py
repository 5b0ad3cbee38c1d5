"""The HTTP port: uvicorn's HTTP/1.1 protocol on the server's own event loop."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from alignserve_server.errors import StartupError
from alignserve_server.host.addresses import present_host
from alignserve_server.settings import host_and_port

_BACKLOG = 2048


class HttpPort:
    """Accepts connections and passes their requests to an app."""

    def __init__(self, app: ASGIApp) -> None:
        self._config = Config(
            app,
            http=HttpToolsProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self._config.load()
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []
        self.port = 0

    async def open(self, listen: str, *, is_shared: bool) -> None:
        """Listens on HOST:PORT.

        Args:
            listen: The address; port 0 picks a free one.
            is_shared: Whether other processes listen on it too, with SO_REUSEPORT.

        Raises:
            StartupError: The port is in use or the address is not one of this machine.
        """
        loop = asyncio.get_running_loop()
        try:
            with ExitStack() as opened:
                for each in _sockets(listen, is_shared=is_shared):
                    opened.callback(each.close)
                    self.port = each.getsockname()[1]
                    self._servers.append(
                        await loop.create_server(self._connection, sock=each, backlog=_BACKLOG)
                    )
                opened.pop_all()
        except OSError as error:
            raise StartupError(
                f"cannot listen on {listen}: {error.strerror}; choose another address with --http-listen"
            ) from error

    async def close(self) -> None:
        """Ends all connections and stops listening."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.transport.close()

    def _connection(self) -> asyncio.Protocol:
        return HttpToolsProtocol(self._config, self._state, {})


def _sockets(listen: str, *, is_shared: bool) -> list[socket.socket]:
    host, port = host_and_port(listen)
    host = present_host(host)
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # as in gRPC: IPv4 too
    if is_shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    return [bound]
