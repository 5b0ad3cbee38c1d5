"""What the server costs by itself: a fake model behind it, beside a bare grpc.aio server."""

from __future__ import annotations

from functools import partial

from alignserve import Client
from alignserve._bench.load import ClosedLoop
from alignserve._bench.runner import Extent

from tests.load.inputs import grpc_calls
from tests.load.measuring import Rates, grpc_rates
from tests.processes import free_port, python_server, server_process

_DIMENSION = 640  # of the fake


def run(rounds: int, seconds: float) -> str:
    """Measures and returns a section of the results."""
    extent = Extent(seconds, warmup_seconds=0.5)
    port = free_port()
    with python_server("tests.load.peers.echo_server", str(_DIMENSION), str(port)):
        _wait(port)
        bare = _rates(f"127.0.0.1:{port}", extent, rounds)
    with server_process("--checkpoint", "fake") as server:
        ours = _rates(server.address, extent, rounds)
    rows = [
        f"| {name} | {bare[name].items_per_second:.0f} | {ours[name].items_per_second:.0f} "
        f"| {ours[name].items_per_second / bare[name].items_per_second:.2f} "
        f"| {bare[name].p50_ms:.2f} | {ours[name].p50_ms:.2f} |"
        for name in bare
    ]
    return "\n".join(
        [
            "## The server alone",
            "",
            "Items per second and p50 in milliseconds: an echo on bare grpc.aio, and alignserve with",
            "`--checkpoint fake`, which admits, tokenizes or decodes, batches, and counts.",
            "",
            "| calls | bare | alignserve | share | bare p50 | alignserve p50 |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _rates(address: str, extent: Extent, rounds: int) -> dict[str, Rates]:
    def rates(modality: str, concurrency: int, streams: int = 0) -> Rates:
        calls = partial(grpc_calls, modality)
        return grpc_rates(address, calls, ClosedLoop(concurrency), extent, rounds, streams)

    return {
        "text, 1 caller": rates("text", 1),
        "text, 64 callers": rates("text", 64),
        "image, 64 callers": rates("image", 64),
        "text, 4 streams": rates("text", 64, streams=4),
    }


def _wait(port: int) -> None:
    with Client(f"127.0.0.1:{port}", wait_for_ready=True) as client:
        client.embed_text("ready?")
