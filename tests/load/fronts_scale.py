"""Simulates how calls per second grow with front processes: `python -m tests.load.fronts_scale`.

It measures the CPU time of a call in a front, in the device process and in a server of one process, and the
time to decode a photo. The simulation of `alignserve-server plan` then runs them on more cores than this
machine has: one for each front and one for the device process. The model takes no time, so the device
process's event loop is the last limit. A call of 64 texts is simulated as one that costs as much.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

from alignserve_server.batching.scheduler import BatchPolicy
from alignserve_server.planning.curve import Curve, FrontCalls
from alignserve_server.planning.search import Traffic, highest_rate
from alignserve_server.planning.simulation import Replica
from alignserve_server.serving.loading import load_encoder
from alignserve_server.settings import Settings

from tests.load import fronts_cost, growth
from tests.load.inputs import PHOTOS
from tests.load.report import table
from tests.processes import ROOT

_FRONTS = (1, 2, 4, 8, 16)
_P99_SECONDS = 0.1
_CALLS = 4000  # simulated at each rate
_MODEL_SECONDS = 1e-7  # of a batch


class Row(NamedTuple):
    """A kind of calls, and where their costs are measured."""

    name: str
    modality: str
    items: int  # of a call
    served: str  # the row of `growth`
    in_flight: int  # requests, for `fronts_cost`


_ROWS = (
    Row("one text a call", "text", 1, "64 callers", 64),
    Row("64 texts a call", "text", 64, "64 callers, 64 texts a request", 8),
    Row("one photo a call", "image", 1, "64 callers, images", 64),
)


class Costs(NamedTuple):
    """CPU seconds of a call."""

    whole: float
    front: float
    device: float
    decode: float  # of all its images, on another thread


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement")
    given = parser.parse_args()
    costs = _measured(given.rounds)
    heads = ["items/s, simulated", "front µs", "decoding µs", "device µs", "one process"]
    heads += [f"{fronts} front{'s' * (fronts > 1)}" for fronts in _FRONTS]
    rows = [list(_cells(*each)) for each in zip(_ROWS, costs, strict=True)]
    print(table([*heads, "device's limit"], rows))


def _measured(rounds: int) -> list[Costs]:
    with ExitStack() as until_done:
        servers = [until_done.enter_context(each) for each in (growth.ours(ROOT), growth.with_front())]
        served = growth.costs_of(servers, [row.served for row in _ROWS], rounds)
    return [
        Costs(
            row.items * served[row.served][growth.OURS] / 1e6,
            row.items * served[row.served][growth.FRONT] / 1e6,
            row.items * _device_seconds(row, rounds),
            _decode_seconds() if row.modality == "image" else 0.0,
        )
        for row in _ROWS
    ]


def _device_seconds(row: Row, rounds: int) -> float:
    """Returns the CPU time of an item in a device process that two fronts keep busy."""
    load = fronts_cost.Load(row.modality, row.items, row.in_flight, fronts=2)
    return median(fronts_cost.measure(load, 2.0, "whole")[0] for _ in range(rounds)) / 1e6


def _decode_seconds() -> float:
    """Returns the CPU time of decoding a photo."""
    encoder = load_encoder(Settings())
    encoder.preprocess_image(PHOTOS[0])
    start = time.process_time()
    for photo in PHOTOS:
        encoder.preprocess_image(photo)
    return (time.process_time() - start) / len(PHOTOS)


def _cells(row: Row, costs: Costs) -> Iterator[str]:
    yield row.name
    for seconds in (costs.front, costs.decode, costs.device):
        yield f"{seconds / row.items * 1e6:.0f}"
    for fronts in (0, *_FRONTS):
        yield f"{row.items * _rate(row, costs, fronts):,.0f}"
    yield f"{row.items / costs.device:,.0f}"


def _rate(row: Row, costs: Costs, fronts: int) -> float:
    """Returns the calls per second that a server sustains with a core for each process, but at least two."""
    cores = max(2, fronts + 1)
    curve = Curve(
        "no time",
        cores,
        lanes=1,
        has_parallel_lanes=True,
        forward_cores=0.0,
        call=_of_both(costs.whole),
        prepare=_of_both(costs.decode),
        forward={"image": {1: {1: _MODEL_SECONDS}}, "text": {1: {1: _MODEL_SECONDS}}},
        front_calls=FrontCalls(_of_both(costs.front), _of_both(costs.device)),
    )
    policies = {modality: BatchPolicy(64) for modality in ("image", "text")}
    replica = Replica(curve, policies, decode_threads=cores, max_queue_size=4096, front_processes=fronts)
    traffic = Traffic(float(row.modality == "image"), (1, 1), _CALLS)
    return highest_rate(replica, traffic, _P99_SECONDS)


def _of_both(seconds: float) -> dict[str, float]:
    return {"image": seconds, "text": seconds}


if __name__ == "__main__":
    main()
