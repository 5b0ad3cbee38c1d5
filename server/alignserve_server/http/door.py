"""Joins the parts of the HTTP port."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from alignserve_server.api import Accounting, Service
from alignserve_server.errors import ShuttingDown
from alignserve_server.http.app import build_app
from alignserve_server.http.body import BodyReader
from alignserve_server.http.connect import connect_endpoints
from alignserve_server.http.connect_stream import StreamInfer
from alignserve_server.http.connection import ConnectionLimits
from alignserve_server.http.dialects import dialect_endpoints
from alignserve_server.http.endpoint import Endpoint, StreamEndpoint
from alignserve_server.http.exchange import ExchangeLimits, Exchanges
from alignserve_server.http.grpc_web import grpc_web_endpoints
from alignserve_server.http.plain import PLAIN
from alignserve_server.http.port import HttpPort
from alignserve_server.http.probes import probe_routes
from alignserve_server.http.rooms import AnswerRooms
from alignserve_server.rpc.message_api import MessageApi
from alignserve_server.rpc.shares import ConnectionShares


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Options of the HTTP port.

    Attributes:
        listen: HOST:PORT; port 0 picks a free one.
        is_shared: Whether other processes listen on it too, with SO_REUSEPORT.
        request_timeout_seconds: Maximum time for the headers to arrive, and for the body.
        idle_timeout_seconds: A client that neither sends nor reads for this long is disconnected.
        max_connections: Maximum number of connections.
        cors_origins: The origins whose pages may call; `*` for all.
        max_request_fields: Maximum number of fields in a request that is not small.
    """

    listen: str
    is_shared: bool
    request_timeout_seconds: float
    idle_timeout_seconds: float
    max_connections: int
    cors_origins: tuple[str, ...]
    max_request_fields: int


class HttpDoor:
    """The HTTP port and everything behind it, down to the API."""

    def __init__(
        self,
        service: Service,
        messages: MessageApi,
        accounting: Accounting,
        uploads: ConnectionShares,
        streams: ConnectionShares,
        options: HttpOptions,
    ) -> None:
        """Opens no port; `start` does.

        Args:
            service: The API.
            messages: Answers messages.
            accounting: Accounts for the calls.
            uploads: Shares of the large bodies that arrive at the same time, on all ports.
            streams: Shares of the open streams, on all ports.
            options: The options.
        """
        limits = service.limits
        self._options = options
        self._reader = BodyReader(uploads, options.request_timeout_seconds, limits.max_request_bytes)
        rooms = AnswerRooms(messages.rooms, limits.max_response_bytes)
        exchange_limits = ExchangeLimits(limits.max_request_bytes, options.idle_timeout_seconds)
        exchanges = Exchanges(accounting, self._reader, rooms, streams, exchange_limits)
        endpoints = _endpoints(service, messages, options)
        self._port = HttpPort(
            build_app(
                endpoints,
                PLAIN,
                exchanges,
                probe_routes(lambda: service.readiness.state.word),
                options.cors_origins,
            ),
            ConnectionLimits(
                head_timeout_seconds=options.request_timeout_seconds,
                idle_timeout_seconds=options.idle_timeout_seconds,
                max_connections=options.max_connections,
            ),
        )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port.port

    async def start(self, tls: ssl.SSLContext | None) -> None:
        """Opens the port. Raises `StartupError` if it is in use or the address is not one of this machine."""
        await self._port.open(self._options.listen, is_shared=self._options.is_shared, tls=tls)

    def drain(self) -> None:
        """From now on, every answer ends its connection."""
        self._port.drain()

    def refuse_uploads(self) -> None:
        """Refuses calls whose body has not arrived."""
        self._reader.interrupt(ShuttingDown)

    async def close(self) -> None:
        """Ends all connections."""
        await self._port.close()


def _endpoints(
    service: Service, messages: MessageApi, options: HttpOptions
) -> Iterator[Endpoint | StreamEndpoint]:
    """Yields the endpoints of all dialects. Of those with the same path, the first one's is the default."""
    yield from connect_endpoints(messages, options.max_request_fields)
    yield StreamInfer(messages, options.max_request_fields, service.limits.max_response_bytes).endpoint()
    yield from grpc_web_endpoints(messages, options.max_request_fields)
    yield from dialect_endpoints(service)
