"""Measures Ray Serve's overhead: a fake model behind it and on a standalone server, in turns.

python -m tests.deploy.ray_overhead [--rounds 3] [--seconds 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from alignserve import Client
from alignserve._bench.load import ClosedLoop
from alignserve._bench.recorder import Measurement
from alignserve._bench.runner import RunLength

from tests.deploy.ray_serve import running_ray_serve
from tests.load.inputs import grpc_calls
from tests.load.measuring import Rates, grpc_round, in_turn, progress
from tests.load.report import number, table
from tests.processes import server_process

_LOADS = {  # modality, requests in flight, streams that carry them
    "text, 1 caller": ("text", 1, 0),
    "text, 64 callers": ("text", 64, 0),
    "image, 64 callers": ("image", 64, 0),
    "text, 64 in flight on 4 streams": ("text", 64, 4),
}
_HEAD = ("calls", "server", "items per second", "p50 (ms)", "p99 (ms)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.ray_overhead")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per measurement (default: 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a round (default: 3)")
    options = parser.parse_args(arguments)
    run_length = RunLength(options.seconds, warmup_seconds=1.0)
    with server_process("--checkpoint", "fake") as alone, running_ray_serve() as ray_serve:
        with Client(ray_serve.address) as client:
            client.wait_until_ready()
        addresses = {"standalone": alone.address, "Ray Serve": ray_serve.address}
        rows = [
            (name, server, str(rates), number(rates.p50_ms), number(rates.p99_ms))
            for name in _LOADS
            for server, rates in _measured(name, addresses, run_length, options.rounds).items()
        ]
    print(table(_HEAD, rows))


def _measured(name: str, addresses: dict[str, str], run_length: RunLength, rounds: int) -> dict[str, Rates]:
    progress(name)
    modality, concurrency, streams = _LOADS[name]

    def once(address: str) -> Measurement:
        return grpc_round(address, grpc_calls(modality), ClosedLoop(concurrency), run_length, streams)

    measures = {server: partial(once, address) for server, address in addresses.items()}
    return {server: Rates.of(taken) for server, taken in in_turn(measures, rounds).items()}


if __name__ == "__main__":
    main()
