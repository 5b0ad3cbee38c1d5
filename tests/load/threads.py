"""Measures what threads gain a torch forward on an idle machine, and cost it on a busy one.

python -m tests.load.threads [--checkpoint ID_OR_FOLDER] [--seconds S]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from alignserve_server.host.cores import cpu_count
from alignserve_server.model.align import LoadOptions, load_align
from alignserve_server.model.checkpoint import resolve_checkpoint

from tests.load.inputs import PHOTOS

TEXT = "a photo of a cat on a sofa in a room with a window"

_ALL = cpu_count()


@dataclass(frozen=True)
class _Contender:
    name: str
    threads: int
    spins: int  # iterations that a thread spins at a barrier before it sleeps
    is_lane: bool = False  # if cores are shared, GNU's OpenMP spins less in all threads except the first


_CONTENDERS = [
    _Contender("one thread in a lane, as served", 1, 1000, is_lane=True),
    _Contender(f"{_ALL} threads in a lane", _ALL, 1000, is_lane=True),
    _Contender(f"{_ALL} threads in the main thread, OpenMP's default", _ALL, 300_000),
    _Contender(f"{_ALL} threads in the main thread, 25 µs of spinning", _ALL, 1000),
    _Contender(f"{_ALL} threads in the main thread, no spinning", _ALL, 0),
]


def main() -> None:
    """Prints a table: p50 of a single image and a single text, by number of busy neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", default="mini", help="folder or hub id (default: mini)")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement (default: 2)")
    parser.add_argument("--contender", type=int, help=argparse.SUPPRESS)  # measured in this process
    arguments = parser.parse_args()
    if arguments.contender is not None:
        print(_times(_CONTENDERS[arguments.contender], arguments.checkpoint, arguments.seconds))
        return
    neighbours = range(_ALL + 1)
    print(
        "| p50 ms of an image · of a text | " + "".join(f"{count} busy neighbours | " for count in neighbours)
    )
    print("|---|" + "---|" * len(neighbours))
    for number, contender in enumerate(_CONTENDERS):
        cells = [_times_with(count, number, arguments.checkpoint, arguments.seconds) for count in neighbours]
        print(f"| {contender.name} | {' | '.join(cells)} |", flush=True)


def _times_with(neighbours: int, number: int, checkpoint: str, seconds: float) -> str:
    """Measures a contender in its own process, since OpenMP reads its settings only once."""
    command = [
        *(sys.executable, "-m", "tests.load.threads", "--contender", str(number)),
        *("--checkpoint", checkpoint, "--seconds", str(seconds)),
    ]
    environment = os.environ | {"GOMP_SPINCOUNT": str(_CONTENDERS[number].spins)}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        for neighbour in busy:
            neighbour.kill()
            neighbour.wait()
    return done.stdout.strip()


def _times(contender: _Contender, checkpoint: str, seconds: float) -> str:
    encoder = load_align(
        resolve_checkpoint(checkpoint),
        LoadOptions(device="cpu", runtime="torch", threads_per_lane=contender.threads),
    )
    image, text = encoder.preprocess_image(PHOTOS[0]), encoder.tokenize(TEXT, truncate=True).token_ids

    def measure() -> str:
        encoder.enter_lane()
        image_ms = _p50_ms(lambda: encoder.encode_images([image]), seconds)
        text_ms = _p50_ms(lambda: encoder.encode_texts([text]), seconds)
        return f"{image_ms:.1f} · {text_ms:.1f}"

    if not contender.is_lane:
        return measure()
    with ThreadPoolExecutor(1) as lane:
        return lane.submit(measure).result()


def _p50_ms(call: Callable[[], object], seconds: float) -> float:
    call()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


if __name__ == "__main__":
    main()
