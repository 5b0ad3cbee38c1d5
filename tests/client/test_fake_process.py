"""The fake server as a process, which tests in any language drive by lines of JSON."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alignserve
import grpc
import pytest
import trustme
from alignserve import Client, RetryPolicy, TextItem
from alignserve.testing import FakeServer
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1.align_service_pb2_grpc import AlignServiceStub


class FakeProcess:
    """The process, and its two ends."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "alignserve.testing", *flags]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.target: str = self._read()["target"]

    def call(self, name: str, **arguments: Any) -> Any:
        """Calls a method and returns its value."""
        answer = self.send(json.dumps({"call": name, "arguments": arguments}))
        assert "ok" in answer, answer
        return answer["ok"]

    def send(self, line: str) -> dict[str, Any]:
        """Sends a line and returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        return self._read()

    def close(self) -> int:
        """Ends its input, and returns its exit code."""
        self._process.communicate(timeout=30)
        return self._process.returncode

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line: dict[str, Any] = json.loads(self._process.stdout.readline())
        return line


@pytest.fixture
def fake() -> Iterator[FakeProcess]:
    process = FakeProcess("--embedding-dimension", "8")
    yield process
    process.close()


def test_it_serves_until_its_input_ends(fake: FakeProcess) -> None:
    """A test that crashes leaves no server behind."""
    with Client(fake.target) as client:
        assert client.is_ready()

    assert fake.close() == 0


def test_failures_are_scripted_and_attempts_reported(fake: FakeProcess) -> None:
    """A failure with all its details; every attempt is in `received` with its metadata and time."""
    fake.call(
        "fail_next",
        code="UNAVAILABLE",
        reason="MODEL_LOADING",
        retry_delay_seconds=0.01,
        times=2,
        method="EmbedText",
    )

    with Client(fake.target, metadata=[("x-team", "search")]) as client:
        client.model_info()
        client.embed_text("a cat")

    received = fake.call("received")
    assert [call["method"] for call in received] == ["GetModelInfo", "EmbedText", "EmbedText", "EmbedText"]
    assert received[1]["request"]["texts"] == ["a cat"]
    assert received[1]["metadata"]["x-team"] == "search"
    assert 0 < received[1]["remaining_seconds"] < 31  # gRPC rounds up
    times = [call["at_seconds"] for call in received]
    assert times == sorted(times)
    assert fake.call("reset") is None
    assert fake.call("received") == []


def test_streams_end_and_inputs_fail(fake: FakeProcess) -> None:
    """Contents are texts or base64; the stream comes back after its end."""
    fake.call("break_stream", after=1, retry_delay_seconds=0.001)
    fake.call("fail_input", content={"base64": base64.b64encode(b"broken").decode()})

    with Client(fake.target) as client:
        results = list(client.stream([TextItem(str(number)) for number in range(3)]))
        with pytest.raises(alignserve.InvalidArgumentError) as caught:
            client.embed_image(b"broken")

    assert [result.error for result in results] == [None] * 3
    assert caught.value.reason == "IMAGE_UNREADABLE"


def test_a_restart_breaks_connections_and_keeps_the_port(fake: FakeProcess) -> None:
    """A client whose connection broke finds the server again."""
    with Client(fake.target, retry=RetryPolicy(initial_backoff_seconds=0.01)) as client:
        before = client.embed_text("a")

        fake.call("restart")

        assert (client.embed_text("a") == before).all()
    assert fake.call("embedding_of", content="a") == pytest.approx(before.tolist())


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("nonsense", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"call": "stop_all"}', "LookupError: stop_all is unknown; call received, break_stream"),
        ('{"call": "hold", "arguments": {"a": 1}}', "TypeError: hold has no argument a; it has none"),
        ('{"call": "fail_next", "arguments": {"code": "NOPE"}}', "'NOPE' is not a gRPC status code"),
        ('{"call": "wait_for_received", "arguments": {"count": 1, "timeout_seconds": 0.01}}', "TimeoutError"),
        ('{"call": "fail_input", "arguments": {"content": {"base64": "*"}}}', "Error"),
    ],
)
def test_a_wrong_line_is_answered_with_what_is_wrong(fake: FakeProcess, line: str, error: str) -> None:
    """The process goes on, so that a test fails at its own mistake."""
    assert error in fake.send(line)["error"]
    assert fake.call("received") == []


def test_delays_hold_one_call_back(fake: FakeProcess) -> None:
    """A deadline in a slow server expires; the next call is answered."""
    fake.call("delay_next", seconds=5, method="EmbedText")

    with Client(fake.target) as client:
        with pytest.raises(alignserve.DeadlineExceededError):
            client.embed_text("a", timeout_seconds=0.1)
        client.embed_text("a")


def test_it_speaks_tls_with_keys_and_client_certificates(tmp_path: Path) -> None:
    """Certificates are files; a client without one of its own is refused."""
    authority = trustme.CA()
    server, mine = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    ca, chain, key = tmp_path / "ca.pem", tmp_path / "server.pem", tmp_path / "server-key.pem"
    authority.cert_pem.write_to_path(str(ca))
    server.cert_chain_pems[0].write_to_path(str(chain))
    server.private_key_pem.write_to_path(str(key))
    pair = ("--tls-certificate", str(chain), "--tls-key", str(key))
    process = FakeProcess(*pair, "--tls-client-ca", str(ca), "--api-key", "as_a")
    my_certificate, my_key = mine.cert_chain_pems[0].bytes(), mine.private_key_pem.bytes()

    with Client(
        process.target,
        root_certificates=ca,
        api_key="as_a",
        client_certificate=my_certificate,
        client_key=my_key,
    ) as client:
        vector = client.embed_text("a")
    once = RetryPolicy(max_attempts=1)
    with (
        Client(process.target, root_certificates=ca, api_key="as_a", retry=once) as bare,
        pytest.raises(alignserve.UnavailableError),
    ):
        bare.embed_text("a")

    assert vector.shape == (64,)
    assert process.close() == 0


def test_half_of_a_certificate_is_refused() -> None:
    """A certificate without its key is a mistake."""
    with pytest.raises(ValueError, match="give tls_certificate and tls_key together"):
        FakeServer(tls_certificate=b"-----BEGIN ")


def test_a_port_in_use_is_told() -> None:
    """The command ends with a message instead of a traceback."""
    with FakeServer() as taken:
        port = taken.target.rpartition(":")[2]
        command = [sys.executable, "-m", "alignserve.testing", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    assert done.returncode == 1
    assert "alignserve.testing: " in done.stderr
    assert "Traceback" not in done.stderr


def test_connections_age() -> None:
    """Connections end in good order, and no call is lost."""
    process = FakeProcess("--max-connection-age-seconds", "0.2")

    with Client(process.target) as client:
        for number in range(300):
            client.embed_text(str(number))

    assert process.close() == 0


@pytest.mark.parametrize(
    ("reason", "pushback_ms", "sent"),
    [("MODEL_LOADING", None, "50"), ("WOULD_MISS_DEADLINE", None, "-1"), ("MODEL_LOADING", 7, "7")],
)
def test_a_pushback_is_sent_as_a_real_server_does_or_as_scripted(
    reason: str, pushback_ms: int | None, sent: str
) -> None:
    """The delay with UNAVAILABLE, -1 where a retry is pointless, or what the test says."""
    with FakeServer() as fake, grpc.insecure_channel(fake.target) as channel:
        fake.fail_next(grpc.StatusCode.UNAVAILABLE, reason, retry_delay_seconds=0.05, pushback_ms=pushback_ms)
        with pytest.raises(grpc.RpcError) as caught:
            AlignServiceStub(channel).EmbedText(pb.EmbedTextRequest(texts=["a"]))

    trailers: Any = caught.value.trailing_metadata()
    assert dict(trailers)["grpc-retry-pushback-ms"] == sent
