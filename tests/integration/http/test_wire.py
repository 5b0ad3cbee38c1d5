"""What no client sends: bytes that could be read as another request, and connections that only cost."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import pytest
from alignserve_server.api import CallScope, MethodRules
from alignserve_server.http.answer import Answer
from alignserve_server.http.connection import Connections
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.plain import PLAIN
from alignserve_server.http.request import HttpRequest

from tests.integration.http.ports import dialed, serving
from tests.integration.serving import RunningServer, until

PATH = "/alignserve.v1.AlignService/EmbedText"
BODY = b'{"texts":["a cat"]}'


def request(*headers: str, body: bytes = BODY, path: str = PATH) -> bytes:
    """Returns a request with the given headers."""
    head = "\r\n".join([f"POST {path} HTTP/1.1", "host: a", *headers])
    return f"{head}\r\n\r\n".encode() + body


GOOD = request(f"content-length: {len(BODY)}")
UPGRADE = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    "sent",
    [
        request(f"content-length: {len(BODY)}", "transfer-encoding: chunked", body=CHUNKED),
        request("transfer-encoding: chunked", f"content-length: {len(BODY)}", body=CHUNKED),
        request(f"content-length: {len(BODY)}", "content-length: 3"),
        request(f"content-length: {len(BODY)}", f"content-length: {len(BODY)}"),
        request(f"content-length: {len(BODY)}, {len(BODY)}"),
        request(f"content-length: +{len(BODY)}"),
        request("content-length: 0x13"),
        request("content-length: -1"),
        request("content-length: 99999999999999999999"),
        request("transfer-encoding: gzip, chunked", body=CHUNKED),
        request("transfer-encoding: chunked, identity", body=CHUNKED),
        request("transfer-encoding: xchunked", body=CHUNKED),
        request("transfer-encoding : chunked", body=CHUNKED),
        request("transfer-encoding: chunked", body=b"+3\r\nabc\r\n0\r\n\r\n"),
        request("transfer-encoding: chunked", body=b"3\r\nabcd\r\n0\r\n\r\n"),
        request("transfer-encoding: chunked", body=b"3\nabc\n0\n\n"),
        request("host: b", f"content-length: {len(BODY)}"),
        b"POST %b HTTP/1.1\r\ncontent-length: 0\r\n\r\n" % PATH.encode(),
        b"POST %b HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" % PATH.encode(),
        b"POST %b HTTP/2.0\r\nhost: a\r\ncontent-length: 0\r\n\r\n" % PATH.encode(),
        b"GET /readyz\r\n\r\n",
        b"GET /readyz HTTP/1.1\nhost: a\n\n",
        b"GET /readyz HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT /readyz HTTP/1.1\r\nhost: a\r\n\r\n",
        request("content-length: 19", "transfer-encoding: chunked", *UPGRADE, body=CHUNKED),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_two_servers_could_read_differently_ends_the_connection(sent: bytes) -> None:
    """Nothing that follows is taken for a request."""
    async with serving() as (served, _), dialed(served) as wire:
        wire.writer.write(sent + GOOD)
        status, headers, _ = await wire.answer()

        assert (status, headers["connection"]) == (400, "close")
        assert await wire.is_closed()


async def test_requests_on_a_connection_are_answered_in_order() -> None:
    """Also if they come together, and with bodies of either form."""
    async with serving() as (served, _), dialed(served) as wire:
        wire.writer.write(GOOD + request("transfer-encoding: chunked", body=CHUNKED) + GOOD)

        answers = [await wire.answer() for _ in range(3)]

    assert [status for status, *_ in answers] == [200, 200, 200]


async def test_a_trailer_is_no_header() -> None:
    """A front end may check headers, and pass trailers on."""
    trailers = CHUNKED.removesuffix(b"\r\n") + b"alignserve-priority: urgent\r\n\r\n"
    async with serving() as (served, _), dialed(served) as wire:
        wire.writer.write(request("transfer-encoding: chunked", body=trailers))

        assert (await wire.answer())[0] == 200


async def test_a_refusal_ends_a_connection_whose_body_has_not_arrived() -> None:
    """Otherwise the rest of the body would be taken for a request."""
    async with serving() as (served, _), dialed(served) as wire:
        wire.writer.write(request("content-length: 1000", path="/nowhere"))
        status, headers, _ = await wire.answer()
        wire.writer.write(GOOD)

        assert (status, headers["connection"]) == (404, "close")
        assert await wire.is_closed()


async def test_a_refusal_keeps_a_connection_whose_body_has_arrived() -> None:
    """A new connection costs more than a refusal."""
    async with serving() as (served, _), dialed(served) as wire:
        wire.writer.write(request(f"content-length: {len(BODY)}", path="/nowhere"))
        status, headers, _ = await wire.answer()
        wire.writer.write(GOOD)

        assert (status, "connection" in headers) == (404, False)
        assert (await wire.answer())[0] == 200


async def test_a_client_that_asks_first_need_not_send_a_body_that_is_refused() -> None:
    """`Expect: 100-continue` is answered with the refusal, or with a go-ahead."""
    async with serving(max_request_bytes=1000, max_image_bytes=1000) as (served, _):
        async with dialed(served) as wire:
            wire.writer.write(request("content-length: 1001", "expect: 100-continue", body=b""))
            assert (await wire.answer())[0] == 413
        async with dialed(served) as wire:
            wire.writer.write(request(f"content-length: {len(BODY)}", "expect: 100-continue", body=b""))
            assert (await wire.answer())[0] == 100
            wire.writer.write(BODY)
            assert (await wire.answer())[0] == 200


async def test_an_upgrade_is_ignored() -> None:
    """Java's client asks for h2c with its first request; its bodies have either form."""
    with_length = request(f"content-length: {len(BODY)}", *UPGRADE)
    in_chunks = request("transfer-encoding: chunked", *UPGRADE, body=CHUNKED)
    async with serving() as (served, _), dialed(served) as wire:
        wire.writer.write(with_length + in_chunks + with_length[:-5])
        wire.writer.write(with_length[-5:] + request(*UPGRADE, body=b"", path="/nowhere") + GOOD)
        answers = [await wire.answer() for _ in range(5)]

    assert [status for status, *_ in answers] == [200, 200, 200, 404, 200]


async def _wait_forever(request: HttpRequest, call: CallScope) -> Answer:
    await asyncio.Event().wait()
    return Answer()


@pytest.mark.parametrize(
    ("sent", "settings", "status"),
    [
        (b"", {"http_idle_timeout_seconds": 0.05}, None),
        (b"\r\n", {"request_timeout_seconds": 0.05}, 408),
        (b"POST / HTTP/1.1\r\nhost: ", {"request_timeout_seconds": 0.05}, 408),
        (request("content-length: 100"), {"request_timeout_seconds": 0.05}, 408),
        (request("transfer-encoding: chunked", body=b"1\r\n"), {"request_timeout_seconds": 0.05}, 408),
        (request("content-length: 100", path="/nowhere"), {}, 404),
        (b"POST /nowhere HTTP/1.1\r\nhost: ", {"request_timeout_seconds": 0.05}, 408),
        (GOOD, {"http_idle_timeout_seconds": 0.05}, 200),
    ],
)
async def test_a_connection_ends_if_its_client_does_not_go_on(
    sent: bytes, settings: dict[str, Any], status: int | None
) -> None:
    """Before the first byte, within headers or a body, after an answer; on every path."""
    async with serving(**settings) as (served, _), dialed(served) as wire:
        wire.writer.write(sent)

        if status is not None:
            assert (await wire.answer())[0] == status
        assert await wire.is_closed()


async def test_headers_that_trickle_end_in_time() -> None:
    """The time counts from the first byte, however often another one comes."""
    async with serving(request_timeout_seconds=0.2) as (served, _), dialed(served) as wire:
        answering = asyncio.ensure_future(wire.answer())
        while not answering.done():
            wire.writer.write(b"x")
            await asyncio.sleep(0.01)

        assert (await answering)[0] in (400, 408)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: a\r\n" * 7_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 900_000,
        request("transfer-encoding: chunked", body=b"1;" + b"a" * 900_000),
        request("transfer-encoding: chunked", body=b"0\r\nx: " + b"a" * 900_000),
    ],
)
async def test_headers_and_trailers_are_limited(sent: bytes) -> None:
    """Also one that has no end."""
    async with serving() as (served, _), dialed(served) as wire:
        wire.writer.write(sent)

        assert (await wire.answer())[0] == 431
        assert await wire.is_closed()


async def test_a_flood_of_pipelined_requests_ends_the_connection() -> None:
    """Each waiting request costs memory."""
    hang = Endpoint("/hang", ("POST",), PLAIN, "hang", MethodRules(scopes=None), _wait_forever)
    async with serving(hang) as (served, _), dialed(served) as wire:
        wire.writer.write(request("content-length: 0", path="/hang", body=b"") + GOOD * 1000)
        async with dialed(served) as other:
            other.writer.write(GOOD)
            assert (await other.answer())[0] == 200
        (connection,) = [each for each in connections_of(served) if each.is_busy]

        assert len(connection.pipeline) <= 16


def connections_of(served: RunningServer) -> Connections:
    """Returns the open connections of the HTTP port."""
    assert served.server._http is not None
    return served.server._http._port._connections


async def test_above_the_limit_a_connection_takes_the_place_of_an_idle_one() -> None:
    """A crowd of silent connections does not keep others out."""
    async with (
        serving(http_max_connections=2) as (served, _),
        dialed(served) as first,
        dialed(served),
        dialed(served) as last,
    ):
        last.writer.write(GOOD)

        assert (await last.answer())[0] == 200
        assert await first.is_closed()


async def test_above_the_limit_no_busy_connection_is_cut() -> None:
    """The new one is refused."""
    hang = Endpoint("/hang", ("POST",), PLAIN, "hang", MethodRules(scopes=None), _wait_forever)
    async with serving(hang, http_max_connections=1) as (served, _), dialed(served) as first:
        first.writer.write(request("content-length: 0", path="/hang", body=b""))
        await until(lambda: any(each.is_busy for each in connections_of(served)))

        async with dialed(served) as second:
            assert (await second.answer())[0] == 503


async def test_connections_leave_half_of_the_open_files_to_others() -> None:
    """The gRPC port and the metrics port need some, whatever the system allows."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(http_max_connections=allowed) as (served, _):
        assert connections_of(served).limits.max_connections == allowed // 2
