"""Joins the parts of the HTTP port."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from alignserve_server.api import Accounting, Service
from alignserve_server.errors import ShuttingDown
from alignserve_server.http.app import build_app
from alignserve_server.http.body import BodyReader
from alignserve_server.http.cohere import Cohere
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.exchange import Exchanges
from alignserve_server.http.huggingface import HuggingFace
from alignserve_server.http.openai import OpenAI
from alignserve_server.http.openapi import OpenApi
from alignserve_server.http.plain import PLAIN
from alignserve_server.http.port import HttpPort
from alignserve_server.http.rooms import AnswerRooms
from alignserve_server.http.tei import TextEmbeddingsInference
from alignserve_server.http.weaviate import Weaviate
from alignserve_server.rpc.message_api import MessageApi
from alignserve_server.rpc.shares import ConnectionShares


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Options of the HTTP port.

    Attributes:
        listen: HOST:PORT; port 0 picks a free one.
        is_shared: Whether other processes listen on it too, with SO_REUSEPORT.
        request_timeout_seconds: Maximum time for a body to arrive.
        max_uploads: Maximum number of large bodies that arrive at the same time.
    """

    listen: str
    is_shared: bool
    request_timeout_seconds: float
    max_uploads: int


class HttpDoor:
    """The HTTP port and everything behind it, down to the API."""

    def __init__(
        self, service: Service, messages: MessageApi, accounting: Accounting, options: HttpOptions
    ) -> None:
        limits = service.limits
        self._options = options
        self._reader = BodyReader(
            ConnectionShares(options.max_uploads), options.request_timeout_seconds, limits.max_request_bytes
        )
        rooms = AnswerRooms(messages.rooms, limits.max_response_bytes)
        exchanges = Exchanges(accounting, self._reader, rooms)
        self._port = HttpPort(build_app(_endpoints(service, messages), PLAIN, exchanges))

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port.port

    async def start(self) -> None:
        """Opens the port. Raises `StartupError` if it is in use or the address is not one of this machine."""
        await self._port.open(self._options.listen, is_shared=self._options.is_shared)

    def refuse_uploads(self) -> None:
        """Refuses calls whose body has not arrived."""
        self._reader.interrupt(ShuttingDown)

    async def close(self) -> None:
        """Ends all connections."""
        await self._port.close()


def _endpoints(service: Service, messages: MessageApi) -> Iterator[Endpoint]:
    """Yields the endpoints of all dialects."""
    dialects = (
        OpenAI(service),
        Cohere(service),
        TextEmbeddingsInference(service),
        Weaviate(service),
        HuggingFace(service),
    )
    for dialect in dialects:
        yield from dialect.endpoints()
    yield from OpenApi(service, dialects).endpoints()
