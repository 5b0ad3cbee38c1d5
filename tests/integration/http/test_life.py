"""The HTTP port from start to stop: TLS, workers, and drain."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from alignserve_server.errors import StartupError
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import Server

from tests.integration.http.ports import dialed, serving
from tests.integration.http.test_admission import HEAD, TEXTS, busy
from tests.integration.http.test_wire import connections_of
from tests.integration.serving import RunningServer, server_process, settings, until
from tests.integration.test_access import Authority

BODY = b'{"texts":["a cat"]}'
CALL = f"{HEAD}content-length: {len(BODY)}\r\n\r\n".encode() + BODY


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are checked for changes at every use, not once a second."""
    monkeypatch.setattr("alignserve_server.host.watched_files._INTERVAL_SECONDS", 0.0)


@asynccontextmanager
async def trusting(
    served: RunningServer, root: bytes, *pair: Path, host: str = "localhost"
) -> AsyncIterator[httpx.AsyncClient]:
    """Opens a client that trusts `root`, with a certificate and key of its own if given."""
    context = ssl.create_default_context(cadata=root.decode())
    if pair:
        context.load_cert_chain(*map(str, pair))
    base = f"https://{host}:{served.server.http_port}"
    async with httpx.AsyncClient(base_url=base, verify=context) as client:
        yield client


class TestTls:
    """Encrypted connections, with the certificates of the gRPC port."""

    async def test_clients_that_trust_the_authority_are_served(self, authority: Authority) -> None:
        """Other clients, and unencrypted ones, are not."""
        certificate, key = authority.issue("server")
        async with serving(tls_certificate=certificate, tls_key=key) as (served, plain):
            async with trusting(served, authority.root) as client:
                assert (await client.post(TEXTS, json={"texts": ["a"]})).status_code == 200
            with pytest.raises(httpx.ConnectError):
                async with trusting(served, trustme.CA().cert_pem.bytes()) as client:
                    await client.post(TEXTS, json={"texts": ["a"]})
            with pytest.raises(httpx.HTTPError):
                await plain.post(TEXTS, json={"texts": ["a"]})

    @pytest.mark.usefixtures("looks_always")
    async def test_a_renewed_certificate_applies_to_new_connections(self, authority: Authority) -> None:
        """At both ports, and to clients that name no server."""
        certificate, key = authority.issue("server")
        async with (
            serving(tls_certificate=certificate, tls_key=key) as (served, _),
            trusting(served, authority.root) as old,
        ):
            await old.post(TEXTS, json={"texts": ["a"]})
            renewed = Authority(certificate.parent)
            renewed.issue("server")

            async with trusting(served, renewed.root) as client:
                assert (await client.post(TEXTS, json={"texts": ["b"]})).status_code == 200
            assert (await old.post(TEXTS, json={"texts": ["c"]})).status_code == 200
            unnamed = ssl.create_default_context(cadata=renewed.root.decode())
            unnamed.check_hostname = False
            _, writer = await asyncio.open_connection(
                "127.0.0.1", served.server.http_port, ssl=unnamed, server_hostname=""
            )
            writer.close()

    @pytest.mark.usefixtures("looks_always")
    async def test_a_client_must_have_a_certificate_of_the_current_authority(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        """The name in it is the caller's, as over gRPC."""
        certificate, key = authority.issue("server")
        roots, mine = authority.write_root(), authority.issue("client", common_name="search")
        (tmp_path / "renewed").mkdir()
        renewed = Authority(tmp_path / "renewed")
        theirs = renewed.issue("client", common_name="labels")
        async with serving(tls_certificate=certificate, tls_key=key, tls_client_ca=roots) as (served, _):
            async with trusting(served, authority.root, *mine) as client:
                assert (await client.post(TEXTS, json={"texts": ["a"]})).status_code == 200
            for pair in ((), theirs):
                with pytest.raises(httpx.HTTPError):
                    async with trusting(served, authority.root, *pair) as client:
                        await client.post(TEXTS, json={"texts": ["a"]})
            roots.write_bytes(renewed.root)
            async with trusting(served, authority.root, *theirs) as client:
                assert (await client.post(TEXTS, json={"texts": ["a"]})).status_code == 200
            with pytest.raises(httpx.HTTPError):
                async with trusting(served, authority.root, *mine) as client:
                    await client.post(TEXTS, json={"texts": ["a"]})

            for name in ("certificate:search", "certificate:labels"):
                assert served.sample("alignserve_caller_items_total", caller=name, outcome="accepted") == 1

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def test_a_client_cannot_resume_a_session(
        self, authority: Authority, version: ssl.TLSVersion
    ) -> None:
        """Its certificate would not be checked again, although its authority may have been replaced."""
        certificate, key = authority.issue("server")
        context = ssl.create_default_context(cadata=authority.root.decode())
        context.minimum_version = context.maximum_version = version
        context.load_cert_chain(*map(str, authority.issue("client")))

        def is_resumed(
            port: int, session: ssl.SSLSession | None
        ) -> tuple[bool | None, ssl.SSLSession | None]:
            plain = socket.create_connection(("127.0.0.1", port))
            with context.wrap_socket(plain, server_hostname="localhost", session=session) as encrypted:
                encrypted.sendall(b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n")
                assert encrypted.recv(8) == b"HTTP/1.1"
                return encrypted.session_reused, encrypted.session

        roots = authority.write_root()
        async with serving(tls_certificate=certificate, tls_key=key, tls_client_ca=roots) as (served, _):
            _, session = await asyncio.to_thread(is_resumed, served.server.http_port, None)

            assert (await asyncio.to_thread(is_resumed, served.server.http_port, session))[0] is False


class TestDrain:
    """SIGTERM and after."""

    async def test_accepted_calls_are_answered_and_their_connections_closed(self) -> None:
        """A later call on an open connection is refused with a reason."""
        async with serving() as (served, _), busy(served), dialed(served) as first, dialed(served) as late:
            late.writer.write(b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await late.answer())[0] == 200
            first.writer.write(CALL)
            await until(lambda: served.waiting("text") == 1)
            stopping = asyncio.ensure_future(served.server.stop(60.0))
            await asyncio.sleep(0)

            late.writer.write(CALL)
            refused = await late.answer()
            served.encoder.gate.set()
            accepted = await first.answer()
            await stopping

            assert (refused[0], refused[1]["connection"]) == (503, "close")
            assert b"SHUTTING_DOWN" in refused[2]
            assert (accepted[0], accepted[1]["connection"]) == (200, "close")
            assert await first.is_closed()
            assert await late.is_closed()

    async def test_a_drain_sends_clients_to_other_servers(self) -> None:
        """While it lasts, calls are served, and each answer ends its connection."""
        async with serving() as (served, client):
            await client.post(TEXTS, json={"texts": ["a"]})
            draining = asyncio.ensure_future(served.server.drain(60.0))
            await asyncio.sleep(0)

            ready = await client.get("/readyz")
            of_dialects = [
                (await client.get(path)).status_code
                for path in ("/health", "/.well-known/ready", "/.well-known/live")
            ]
            answer = await client.post(TEXTS, json={"texts": ["a"]})
            draining.cancel()

        assert (ready.status_code, ready.text) == (503, "draining\n")
        assert of_dialects == [503, 503, 204]
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")

    @pytest.mark.parametrize(
        "sent",
        [
            b"",
            b"POST / HTTP/1.1\r\nhost:",
            f"{HEAD}content-length: 100\r\n\r\n".encode(),
            b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n",
        ],
    )
    async def test_idle_and_stalled_connections_do_not_hold_up_the_end(self, sent: bytes) -> None:
        """The grace is for accepted calls."""
        async with serving(request_timeout_seconds=600) as (served, _), dialed(served) as wire:
            wire.writer.write(sent)
            await until(lambda: [c for c in connections_of(served) if not sent or c.cycle or c._is_in_head])

            async with asyncio.timeout(10):
                await served.server.stop(60.0)

    async def test_an_answer_that_nobody_reads_does_not_hold_up_the_end(self) -> None:
        """It is cut after a moment."""
        request = (
            b'{"images":['
            + b",".join([b'{"content":"YQ=="}'] * 60)
            + b'],"labels":["'
            + b'","'.join(b"label %d %b" % (number, b"x" * 500) for number in range(200))
            + b'"]}'
        )
        head = HEAD.replace("EmbedText", "Classify")
        async with serving() as (served, _), dialed(served) as wire:
            sock = wire.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.writer.write(f"{head}content-length: {len(request)}\r\n\r\n".encode() + request)
            await until(lambda: served.items("image")["ok"] == 60)

            async with asyncio.timeout(20):
                await served.server.stop(1.0)


class TestStart:
    """The port's address, its packages and its place in the log."""

    async def test_a_port_in_use_prevents_the_start(self) -> None:
        """The message names the flag."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = Server(
                settings(http_listen=f"127.0.0.1:{taken.getsockname()[1]}"), lambda _: FakeEncoder()
            )
            with pytest.raises(StartupError, match="--http-listen"):
                await server.start()
            await server.stop(0.0)

    async def test_without_its_packages_the_start_says_what_to_install(self) -> None:
        """The extra is not part of a plain installation."""
        code = (
            "import sys; sys.modules['uvicorn'] = None; from alignserve_server.cli.main import main; main()"
        )
        flags = ("--checkpoint", "fake", "--metrics-listen", "none", "--http-listen", "127.0.0.1:0")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, *flags, "--listen", "127.0.0.1:0"), stderr=asyncio.subprocess.PIPE
        )
        _, output = await process.communicate()

        assert process.returncode == 1
        assert b"uvicorn is missing; pip install 'alignserve[server,http]'" in output

    async def test_workers_share_the_port_until_a_signal_ends_them(self) -> None:
        """An accepted call is answered, and the process ends cleanly."""
        flags = ("--workers", "2", "--http-listen", "127.0.0.1:0", "--drain-delay-seconds", "0")
        async with server_process(*flags) as server:
            port = (await server.event("listening"))["http_port"]
            await server.event("ready")
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                answers = [await client.post(TEXTS, json={"texts": ["a"]}) for _ in range(5)]

            assert [answer.status_code for answer in answers] == [200] * 5
            assert await server.stop(signal.SIGTERM) == 0


async def test_the_metrics_of_every_method_exist_from_the_start() -> None:
    """Rates are right from the first call on."""
    async with serving() as (served, _):
        labels = {"grpc_type": "unary", "grpc_service": "grpc-web", "grpc_method": "Classify"}
        registry = served.server.metrics.registry

        assert registry.get_sample_value("grpc_server_handled_total", {**labels, "grpc_code": "OK"}) == 0
