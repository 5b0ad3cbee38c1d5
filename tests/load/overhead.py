"""Measures the server's own overhead: with a fake model, compared with a bare grpc.aio server."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from alignserve import Client
from alignserve._bench.load import ClosedLoop
from alignserve._bench.recorder import Measurement

from tests.load.contenders import python_server
from tests.load.inputs import MODALITIES, grpc_calls
from tests.load.measuring import Plan, Rates, grpc_round, in_turn, progress
from tests.load.report import Bar, Section, number, ratio, table
from tests.processes import free_port, server_process

_DIMENSION = 640  # of the fake model
_LOADS = {  # modality, requests in flight, streams that carry them
    "text, 1 caller": ("text", 1, 0),
    "text, 64 callers": ("text", 64, 0),
    "text, 4 streams": ("text", 64, 4),
    "image, 64 callers": ("image", 64, 0),
    "image, 4 streams": ("image", 64, 4),
}

_NOTE = """\
Items per second and p50 in milliseconds: an echo server on bare grpc.aio, and alignserve with
`--checkpoint fake`, which admits, tokenizes or decodes, batches and counts. Both run on uvloop and parse
their requests; they take turns. The 4 streams have as many items in flight as 64 callers."""


def run(plan: Plan) -> Section:
    """Measures both servers."""
    port = free_port()
    with (
        python_server("echo_server", str(_DIMENSION), str(port)),
        server_process("--checkpoint", "fake") as server,
        Client(f"127.0.0.1:{port}", wait_for_ready=True) as client,
    ):
        client.embed_text("ready?")
        addresses = {"bare": f"127.0.0.1:{port}", "alignserve": server.address}
        rates = {name: _rates(name, addresses, plan) for name in _LOADS}
    head = ("calls", "bare", "alignserve", "share", "bare p50", "alignserve p50")
    stream_head = ("4 streams ÷ 64 callers", "bare", "alignserve")
    gains = {modality: _gains(modality, rates) for modality in MODALITIES}
    gain_rows = [(modality, *(f"{gain:.2f}" for gain in of.values())) for modality, of in gains.items()]
    shares = {name: _share(of) for name, of in rates.items()}
    return Section(
        "Server overhead",
        [_NOTE, table(head, [_row(name, of) for name, of in rates.items()]), table(stream_head, gain_rows)],
        [
            *(Bar(f"fake model ÷ bare echo, {name}", share, 0.6) for name, share in shares.items()),
            *(Bar(f"streamed ÷ unary {name}s/s", of["alignserve"], 2.0) for name, of in gains.items()),
        ],
    )


def _rates(name: str, addresses: Mapping[str, str], plan: Plan) -> dict[str, Rates]:
    progress(name)
    modality, concurrency, streams = _LOADS[name]

    def once(address: str) -> Measurement:
        load = ClosedLoop(concurrency)
        return grpc_round(address, grpc_calls(modality), load, plan.run_length, streams)

    measures = {server: partial(once, address) for server, address in addresses.items()}
    return {server: Rates.of(rounds) for server, rounds in in_turn(measures, plan.rounds).items()}


def _row(name: str, of: Mapping[str, Rates]) -> tuple[object, ...]:
    bare, ours = of["bare"], of["alignserve"]
    return name, bare, ours, f"{_share(of):.2f}", number(bare.p50_ms), number(ours.p50_ms)


def _share(of: Mapping[str, Rates]) -> float:
    return ratio(of["alignserve"].items_per_second, of["bare"].items_per_second)


def _gains(modality: str, rates: Mapping[str, Mapping[str, Rates]]) -> dict[str, float]:
    unary, streamed = rates[f"{modality}, 64 callers"], rates[f"{modality}, 4 streams"]
    return {
        server: ratio(streamed[server].items_per_second, unary[server].items_per_second) for server in unary
    }
