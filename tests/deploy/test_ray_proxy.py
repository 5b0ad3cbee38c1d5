"""The additions to Ray Serve's proxy, tested without Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from deploy.ray.proxy import SECONDS_LEFT_KEY, add_services

EMBED, STREAM = "/alignserve.v1.AlignService/EmbedText", "/alignserve.v1.AlignService/StreamInfer"


class ProxyServer:
    """Replaces all handlers with those of its factory, as Ray Serve's server does."""

    def __init__(self) -> None:
        self.service_handler_factory: Callable[..., Any] = self.make
        self.handlers: dict[str, Any] = {}
        self.contexts: list[Any] = []

    def make(self, service_method: str, streaming_type: str) -> Callable[..., Any]:
        async def unary(request: bytes, context: Any) -> bytes:
            self.contexts.append(context)
            return request

        async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            self.contexts.append(context)
            async for request in requests:
                yield request

        return stream if streaming_type == "stream_stream" else unary

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        """Does nothing, because these are the same handlers."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            kind = "stream_stream" if handler.request_streaming else "unary_unary"
            method = f"/{service}/{name}"
            self.handlers[method] = self.service_handler_factory(service_method=method, streaming_type=kind)


class Context:
    """The context of a call with a deadline, or none."""

    def __init__(self, left: float | None) -> None:
        self.left = left

    def time_remaining(self) -> float | None:
        return self.left

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ("authorization", "Bearer KEY"), (SECONDS_LEFT_KEY, "1000")

    def peer(self) -> str:
        return "unix:"


class Servicer:
    """Is never called."""

    def __getattr__(self, name: str) -> object:
        return name


@pytest.fixture
def server() -> ProxyServer:
    server = ProxyServer()
    add_services(Servicer(), server)
    return server


async def _messages(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


@pytest.mark.parametrize(("left", "told"), [(0.5, "0.5"), (None, "inf")])
async def test_the_deadline_is_passed_on_as_metadata(
    server: ProxyServer, left: float | None, told: str
) -> None:
    """It replaces metadata of that name from the caller; the rest of the context is gRPC's."""
    assert await server.handlers[EMBED](b"request", Context(left)) == b"request"
    [_ async for _ in server.handlers[STREAM](_messages(), Context(left))]

    for context in server.contexts:
        metadata = context.invocation_metadata()
        assert metadata == (("authorization", "Bearer KEY"), (SECONDS_LEFT_KEY, told))
        assert context.peer() == "unix:"
    assert len(server.contexts) == 2


async def test_empty_messages_of_a_stream_are_dropped(server: ProxyServer) -> None:
    """They only carry the status."""
    stream = server.handlers[STREAM](_messages(b"a", b"b", b""), Context(None))

    assert [message async for message in stream] == [b"a", b"b"]


def test_other_services_are_left_alone(server: ProxyServer) -> None:
    """Only the API and health are changed, and Ray Serve's factory is restored."""
    assert {method.split("/")[1] for method in server.handlers} == {
        "alignserve.v1.AlignService",
        "grpc.health.v1.Health",
    }
    assert server.service_handler_factory == server.make
