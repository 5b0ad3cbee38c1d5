"""Errors name the cause of a failed connection and what to do, whatever gRPC reports."""

from __future__ import annotations

import asyncio
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import alignserve
import grpc
import pytest
import trustme
from alignserve import AsyncClient, Client, RetryPolicy, TextItem
from alignserve._probe import Cause
from alignserve.testing import FakeServer
from alignserve.v1 import align_service_pb2 as pb

from tests.processes import free_port

ONCE = RetryPolicy(max_attempts=1, max_stream_attempts=1)


@dataclass
class Ports:
    """Servers of each kind, and client certificates."""

    by_name: dict[str, int]
    authority: bytes
    own: trustme.LeafCert
    strange: trustme.LeafCert


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    authority, other = trustme.CA(), trustme.CA()
    issued = {
        "tls": authority.issue_cert("localhost"),
        "expired": authority.issue_cert("localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC)),
        "elsewhere": authority.issue_cert("elsewhere.example"),
    }
    root = authority.cert_pem.bytes()
    credentials = {name: grpc.ssl_server_credentials([pair(leaf)]) for name, leaf in issued.items()}
    credentials["mtls"] = grpc.ssl_server_credentials([pair(issued["tls"])], root, True)
    with ExitStack() as stack:
        by_name = {name: stack.enter_context(serving(each)) for name, each in credentials.items()}
        by_name["plain"] = stack.enter_context(serving(None))
        by_name["web"] = stack.enter_context(web_server())
        by_name["nothing"] = free_port()
        yield Ports(by_name, root, authority.issue_cert("me@x.example"), other.issue_cert("me@x.example"))


def pair(leaf: trustme.LeafCert) -> tuple[bytes, bytes]:
    return leaf.private_key_pem.bytes(), b"".join(each.bytes() for each in leaf.cert_chain_pems)


@contextmanager
def serving(credentials: grpc.ServerCredentials | None) -> Iterator[int]:
    info = pb.GetModelInfoResponse(model_id="there").SerializeToString()
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetModelInfo": grpc.unary_unary_rpc_method_handler(lambda _, __: info)
    }
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("alignserve.v1.AlignService", handlers)]
    )
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


class Silent(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def web_server() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


CASES = {
    "nothing listens": ("nothing", "none", "localhost", ["no server at localhost", "connection refused"]),
    "untrusted authority": (
        "tls",
        "tls",
        "localhost",
        ["authority that this client does not trust", "--ca-file"],
    ),
    "unencrypted to TLS": ("tls", "none", "localhost", ["the server uses TLS", "tls=True", "--tls"]),
    "TLS to unencrypted": ("plain", "ca", "localhost", ["does not use TLS", "leave out TLS"]),
    "no client certificate": (
        "mtls",
        "ca",
        "localhost",
        ["requires a client certificate", "--certificate-file"],
    ),
    "strange client certificate": (
        "mtls",
        "strange",
        "localhost",
        ["does not accept this client's certificate"],
    ),
    "another name": ("elsewhere", "ca", "localhost", ["not for the name 'localhost'"]),
    "an address for a name": ("tls", "ca", "127.0.0.1", ["not for the name '127.0.0.1'"]),
    "expired": ("expired", "ca", "localhost", ["certificate has expired", "renew"]),
    "a web server": ("web", "none", "127.0.0.1", ["an HTTP server answers", "--listen"]),
    "a web server by TLS": ("web", "ca", "127.0.0.1", ["an HTTP server answers"]),
}


def arguments(ports: Ports, name: str, security: str, host: str, folder: Path) -> dict[str, Any]:
    given: dict[str, Any] = {"target": f"{host}:{ports.by_name[name]}", "retry": ONCE}
    if security == "tls":
        given["tls"] = True
    if security in ("ca", "strange"):
        given["root_certificates"] = ports.authority
    if security == "strange":
        given["client_key"], given["client_certificate"] = pair(ports.strange)
    return given


@pytest.mark.parametrize("case", CASES)
def test_an_error_names_the_cause(ports: Ports, tmp_path: Path, case: str) -> None:
    """The message has the cause and what to do, and the code is unchanged."""
    name, security, host, expected = CASES[case]

    with Client(**arguments(ports, name, security, host, tmp_path)) as client:
        with pytest.raises(alignserve.UnavailableError) as caught:
            client.model_info()
        with pytest.raises(alignserve.UnavailableError) as listed:
            client.embed_text(["a", "b"])
        with pytest.raises(alignserve.UnavailableError) as streamed:
            list(client.stream([TextItem("a")]))

    for each in (caught, listed, streamed):
        assert [part for part in expected if part not in each.value.message] == []
        assert (each.value.code, each.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")


@pytest.mark.parametrize("case", CASES)
async def test_an_error_names_the_cause_in_asyncio(ports: Ports, tmp_path: Path, case: str) -> None:
    """The asyncio client behaves like the blocking one."""
    name, security, host, expected = CASES[case]

    async with AsyncClient(**arguments(ports, name, security, host, tmp_path)) as client:
        with pytest.raises(alignserve.UnavailableError) as caught:
            await client.model_info()

    assert [part for part in expected if part not in caught.value.message] == []


def test_credentials_made_by_grpc_are_looked_into_as_well(ports: Ports) -> None:
    """Credentials are opaque, so gRPC tries each address with them."""
    target = f"localhost:{ports.by_name['tls']}"
    trusting = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())

    with (
        Client(target, credentials=trusting, retry=ONCE) as client,
        pytest.raises(alignserve.UnavailableError, match="authority that this client does not trust"),
    ):
        client.model_info()


def test_every_address_of_a_name_is_named(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """If `localhost` has two addresses, the one with the cause comes first, and the other is mentioned."""
    port = ports.by_name["tls"]
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", resolver(both))

    with (
        Client(f"localhost:{port}", retry=ONCE) as client,
        pytest.raises(alignserve.UnavailableError) as caught,
    ):
        client.model_info()

    assert f"127.0.0.1:{port}: the server uses TLS" in caught.value.message
    assert f"(also tried [::1]:{port}: " in caught.value.message


def resolver(answer: list[Any]) -> Any:
    real = socket.getaddrinfo
    return lambda host, *args, **kwargs: answer if host == "localhost" else real(host, *args, **kwargs)


def test_a_name_that_does_not_resolve_is_called_that() -> None:
    """`.invalid` never resolves."""
    with (
        Client("nowhere.invalid:50051", retry=ONCE) as client,
        pytest.raises(alignserve.UnavailableError, match=r"nowhere.invalid:50051 cannot be resolved"),
    ):
        client.model_info()


def test_a_resolver_that_hangs_delays_an_error_for_a_moment_only(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cause, the error has gRPC's own message."""
    gate = threading.Event()
    monkeypatch.setattr("alignserve._transport.MAX_PROBE_SECONDS", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [] if gate.wait() else None)

    with Client(f"127.0.0.1:{ports.by_name['nothing']}", retry=ONCE) as client:
        with pytest.raises(alignserve.UnavailableError, match="Connection refused"):
            client.model_info()
        gate.set()


def test_callers_that_fail_together_share_one_look(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent failures share one probe of the server."""
    looks: list[str] = []
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kw: looks.append(args[0]) or real(*args, **kw))

    with Client(f"localhost:{ports.by_name['nothing']}", retry=ONCE) as client:
        for _ in range(50):
            with pytest.raises(alignserve.UnavailableError):
                client.model_info()

    assert 1 <= looks.count("localhost") < 25


def test_no_look_is_taken_while_retries_are_left(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause is determined once, when the error is raised."""
    looks: list[object] = []
    monkeypatch.setattr("alignserve._probe.Probe._cause", lambda _: looks.append(1))
    retry = RetryPolicy(max_attempts=4, initial_backoff_seconds=0.001)

    with (
        Client(f"127.0.0.1:{ports.by_name['nothing']}", retry=retry) as client,
        pytest.raises(alignserve.UnavailableError),
    ):
        client.model_info()

    assert looks == [1]


def test_a_list_that_fails_at_once_is_looked_into_once(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list reuses the cause that a request has found."""
    asked: list[object] = []
    monkeypatch.setattr("alignserve._transport.Transport.cause", lambda _: asked.append(1) or Cause("found"))

    with (
        Client(f"127.0.0.1:{ports.by_name['nothing']}", retry=ONCE) as client,
        pytest.raises(alignserve.UnavailableError, match="found") as caught,
    ):
        client.embed_text("a")

    assert asked == [1]
    assert isinstance(caught.value.__cause__, alignserve.UnavailableError)


def test_an_error_of_the_server_stays_as_it_is(server: FakeServer) -> None:
    """A server that has answered is not probed."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING", message="the model is loading")

    with Client(server.target, retry=ONCE) as client, pytest.raises(alignserve.UnavailableError) as caught:
        client.model_info()

    assert caught.value.message == "the model is loading"


def test_a_question_whether_the_server_is_ready_takes_no_look(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`is_ready` returns only a bool, so it does not probe; `check_ready` does."""
    looks: list[object] = []
    monkeypatch.setattr("alignserve._probe.Probe._cause", lambda _: looks.append(1))

    with Client(f"127.0.0.1:{ports.by_name['nothing']}") as client:
        assert not client.is_ready()
        assert looks == []
        with pytest.raises(alignserve.UnavailableError):
            client.check_ready()

    assert looks == [1]


def test_a_client_that_waits_for_a_server_names_the_cause(ports: Ports) -> None:
    """A call that waits for a server runs out of time instead of failing to connect, and is probed too."""
    with (
        Client(f"localhost:{ports.by_name['tls']}", wait_for_ready=True, timeout_seconds=0.3) as client,
        pytest.raises(alignserve.DeadlineExceededError, match="the server uses TLS"),
    ):
        client.model_info()


def test_a_failed_wait_names_the_cause(ports: Ports) -> None:
    """`wait_until_ready` names a wrong certificate instead of a missing server."""
    with (
        Client(f"localhost:{ports.by_name['tls']}") as client,
        pytest.raises(alignserve.DeadlineExceededError, match="the server uses TLS"),
    ):
        client.wait_until_ready(0.3)


def shell(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment.pop("GRPC_VERBOSITY", None)
    return subprocess.run(
        [sys.executable, "-m", "alignserve.cli", *map(str, arguments)],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("case", ["untrusted authority", "no client certificate", "nothing listens"])
def test_the_shell_says_it_in_one_line(ports: Ports, case: str, tmp_path: Path) -> None:
    """The command prints one line, without gRPC's own, and exits with 3 or 4."""
    name, security, host, expected = CASES[case]
    (tmp_path / "ca.pem").write_bytes(ports.authority)
    flags = {"none": [], "tls": ["--tls"], "ca": ["--ca-file", str(tmp_path / "ca.pem")]}[security]

    done = shell("--server", f"{host}:{ports.by_name[name]}", *flags, "info")

    assert done.returncode == 3
    assert [part for part in expected if part not in done.stderr] == []
    assert done.stderr.count("\n") == 1
    assert "[UNAVAILABLE]" not in done.stderr
    assert ("no server at" in done.stderr) == (case == "nothing listens")


@pytest.mark.parametrize(
    "target", ["127.0.0.1:{}", "localhost:{}", "http://127.0.0.1:{}", "dns:///localhost:{}"]
)
def test_no_proxy_leads_to_this_machine(server: FakeServer, target: str) -> None:
    """A health check inside a container works even if `http_proxy` is set there."""
    port = server.target.rpartition(":")[2]

    done = shell("--server", target.format(port), "info", http_proxy="http://127.0.0.1:1", no_proxy="")

    assert (done.returncode, done.stderr) == (0, "")


def test_a_proxy_is_named_without_its_password() -> None:
    """If the proxy is the cause, the error names the proxy instead of the server's address."""
    done = shell(
        "--server", "align.invalid:50051", "info", https_proxy="http://me:secret@127.0.0.1:1", no_proxy=""
    )

    assert done.returncode == 3
    assert "through the proxy 127.0.0.1:1 of https_proxy" in done.stderr
    assert "secret" not in done.stderr
    assert "Connection refused" in done.stderr


def test_asyncio_is_not_blocked_by_a_look(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop is not blocked while a name is resolved."""
    gate = threading.Event()
    monkeypatch.setattr("alignserve._probe.Probe._cause", lambda _: gate.wait() and Cause("the cause"))

    async def fail() -> str:
        async with AsyncClient(f"127.0.0.1:{ports.by_name['nothing']}", retry=ONCE) as client:
            call = asyncio.ensure_future(client.model_info())
            await asyncio.wait([call], timeout=0.05)
            gate.set()
            with pytest.raises(alignserve.UnavailableError) as caught:
                await call
            return caught.value.message

    assert asyncio.run(fail()) == "the cause"
