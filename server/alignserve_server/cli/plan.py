"""The command `alignserve-server plan`: estimates the number of replicas for a load."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from alignserve_server.cli.command import PROGRAM, command_failed, command_parser
from alignserve_server.host.other_work import OtherWork
from alignserve_server.planning.curve import Curve
from alignserve_server.planning.measure import measure
from alignserve_server.planning.search import Traffic, expected, highest_rate, on_idle, sustains
from alignserve_server.planning.simulation import Outcome, Replica
from alignserve_server.serving.loading import load_encoder, measured_sizes
from alignserve_server.settings import Settings

_EXAMPLES = """\
examples:
  alignserve-server plan --p99 0.25                                  what one replica sustains
  alignserve-server plan --p99 0.25 --rps 500 --checkpoint /models/align --save curve.json
  alignserve-server plan --p99 0.5 --rps 500 --share-of-images 0.2 --curve curve.json
  alignserve-server plan --p99 0.25 --replicas 3 --curve curve.json  what three replicas sustain

Loads and measures the model on this machine, which should be idle otherwise, with the settings of the server,
then simulates traffic with the measured times. A curve can be saved and used again on any machine: model,
device, lanes and threads come from the curve, and batching, queues and decode threads from the settings.
See server/docs/capacity.md for how to read the result.
"""
_CURVES = TypeAdapter(Curve)
_MIN_CALLS = 1000
_NOTICEABLE_SHARE = 0.1  # of the machine's cores
_PLAIN_TEXT_TOKENS = 15  # of the text with which a server measures its batch sizes


@dataclass(frozen=True, slots=True)
class _Row:
    """A number of replicas, and the outcome of the calls that each one gets."""

    replicas: int
    rate_each: float
    outcome: Outcome


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `alignserve-server plan`, without the settings."""
    result = command_parser(
        "plan",
        "Estimates the number of replicas for a load by measuring this machine and simulating the load.",
        _EXAMPLES,
        usage="%(prog)s --p99 SECONDS [--rps N] [--replicas N] [options] [settings]",
    )
    result.add_argument(
        "--p99",
        metavar="SECONDS",
        type=_positive,
        required=True,
        help="target for the 99th percentile of the latency, without network and client",
    )
    result.add_argument("--rps", metavar="N", type=_positive, help="calls per second, of one item each")
    result.add_argument("--replicas", metavar="N", type=_at_least_1, help="number of replicas to check")
    result.add_argument(
        "--share-of-images",
        metavar="RATIO",
        type=_share,
        default=0.5,
        help="share of images, from 0 to 1; the rest are texts (default: 0.5)",
    )
    result.add_argument(
        "--text-tokens",
        metavar="MIN-MAX",
        type=_range,
        default=(5, 20),
        help="range of text lengths in tokens, uniformly distributed (default: 5-20)",
    )
    result.add_argument(
        "--image-size",
        metavar="WIDTHxHEIGHT",
        type=_size,
        default=(640, 480),
        help="size of the JPEG images to measure with (default: 640x480)",
    )
    result.add_argument(
        "--calls",
        metavar="N",
        type=_many,
        default=20_000,
        help="simulated calls per rate; fewer are faster and less precise (default: 20000)",
    )
    curve = result.add_mutually_exclusive_group()
    curve.add_argument("--save", metavar="FILE", type=Path, help="save the measured curve as JSON")
    curve.add_argument("--curve", metavar="FILE", type=Path, help="use a saved curve instead of measuring")
    result.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return result


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 — Path.is_dir() raises where it may not look


async def plan(arguments: argparse.Namespace, settings: Settings) -> int:
    """Runs the command.

    Returns:
        The exit code: 0 if the replicas sustain the load, 1 if they do not, 2 for invalid usage.
    """
    if settings.workers > 1:
        return _fail(
            f"workers is {settings.workers}, but a plan is for one worker; omit it, limit the process to "
            "the resources of one worker (taskset, --lanes), and count each worker as a replica",
            2,
        )
    if arguments.save and not _is_folder(arguments.save.parent):
        return _fail(f"--save {arguments.save}: no such directory: {arguments.save.parent}", 2)
    note = None
    if arguments.curve:
        try:
            curve = _CURVES.validate_json(arguments.curve.read_bytes())
        except (OSError, ValueError) as error:
            return _fail(f"--curve {arguments.curve}: {_reason(error)}; create another one with --save", 2)
        if settings.front_processes and curve.front_calls is None:
            return _fail(
                f"--curve {arguments.curve} was measured without front processes; create another one with "
                "--front-processes and --save",
                2,
            )
    else:
        _progress("loading the model")
        encoder = load_encoder(settings)
        others = OtherWork()
        curve = await measure(settings, encoder, arguments.image_size, _progress)
        note = busy_machine(others.cores(), os.cpu_count() or 1)
    if arguments.save:
        arguments.save.write_bytes(_CURVES.dump_json(curve, indent=2) + b"\n")
    code = _answer(arguments, _replica(curve, settings))
    if note:
        print(f"{PROGRAM} plan: {note}", file=sys.stderr)
    return code


def busy_machine(others: float | None, cores: int) -> str | None:
    """Returns a warning about other load during a measurement, or None if there was little.

    Args:
        others: Cores that other processes kept busy; None if unknown.
        cores: Number of cores of the machine.
    """
    if others is None or others <= _NOTICEABLE_SHARE * cores:
        return None
    return (
        f"other processes used {others:.1f} of the machine's {cores} cores during the measurement, "
        "so a replica may sustain more; measure again on an idle machine"
    )


def _answer(arguments: argparse.Namespace, replica: Replica) -> int:
    traffic = Traffic(arguments.share_of_images, arguments.text_tokens, arguments.calls)
    idle_p99 = on_idle(replica, traffic).latency(99)
    max_rate = 0.0
    if idle_p99 <= arguments.p99:
        max_rate = highest_rate(
            replica,
            traffic,
            arguments.p99,
            lambda rate: _progress(f"trying {_number(rate)} calls per second"),
        )
    if not max_rate:
        return _fail(
            f"a p99 of {_ms(arguments.p99)} is unreachable: a single call on an idle replica takes "
            f"{_ms(idle_p99)}; allow several times that, or use a faster device, runtime or --dtype",
            1,
        )
    rows = [
        _Row(replicas, rate, expected(replica, traffic, rate))
        for replicas, rate in _loads(arguments.rps, arguments.replicas, max_rate)
    ]
    print((_json if arguments.json else _text)(replica, arguments.p99, max_rate, rows))
    needed = math.ceil((arguments.rps or max_rate) / max_rate)
    if rows[0].replicas < needed:
        return _fail(f"{rows[0].replicas} replicas cannot sustain the load; {needed} are needed", 1)
    return 0


def _loads(rps: float | None, replicas: int | None, max_rate: float) -> Iterator[tuple[int, float]]:
    """Yields numbers of replicas and the calls per second for each replica."""
    if rps is None:
        yield replicas or 1, max_rate
    elif replicas is not None:
        yield replicas, rps / replicas
    else:
        needed = math.ceil(rps / max_rate)
        yield needed, rps / needed
        yield needed + 1, rps / (needed + 1)


def _replica(curve: Curve, settings: Settings) -> Replica:
    """Configures a replica as a server configures itself, including batch sizes chosen by measuring."""
    clock = 0.0

    def run(modality: str, size: int, *, length: int) -> None:
        nonlocal clock
        clock += curve.forward_seconds(modality, size, length)

    sizes = measured_sizes(
        settings,
        "cpu" if curve.has_parallel_lanes else "cuda",
        {"image": partial(run, "image", length=1), "text": partial(run, "text", length=_PLAIN_TEXT_TOKENS)},
        _PLAIN_TEXT_TOKENS,
        lambda: clock,
    )
    return Replica(
        curve,
        sizes.policies(),
        settings.decode_threads * max(1, settings.front_processes)
        if settings.decode_threads
        else curve.cores,
        settings.max_queue_size,
        settings.max_queue_delay_seconds,
        settings.front_processes,
    )


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])
    return str(error)


def _json(replica: Replica, p99: float, max_rate: float, rows: Sequence[_Row]) -> str:
    plan: dict[str, Any] = {
        "model": replica.curve.model,
        "max_batch_size": {name: policy.max_batch_size for name, policy in replica.policies.items()},
        "p99_seconds": p99,
        "calls_per_second_of_one": max_rate,
        "plans": [
            {
                "replicas": row.replicas,
                "calls_per_second_each": row.rate_each,
                "is_sustained": sustains(row.outcome, p99),
                "is_saturated": row.outcome.is_saturated,
                "device_busy": row.outcome.device_busy,
                "cores_busy": row.outcome.cores_busy,
                "mean_batch": row.outcome.mean_batch,
                "p50_seconds": row.outcome.latency(50),
                "p99_seconds": row.outcome.latency(99),
            }
            for row in rows
        ],
    }
    return json.dumps(plan, indent=2)


def _text(replica: Replica, p99: float, max_rate: float, rows: Sequence[_Row]) -> str:
    curve = replica.curve
    sizes = ", ".join(f"{name} {policy.max_batch_size}" for name, policy in replica.policies.items())
    head = ("replicas", "calls/s each", "device busy", "cores busy", "images a batch", "texts a batch")
    cells = [(*head, "p50", "p99"), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        [
            f"{curve.model}; cores: {curve.cores}; lanes: {curve.lanes}; max batch size: {sizes}",
            f"One replica sustains {_number(max_rate)} calls/s with a p99 of {_ms(p99)}.",
            "",
            *("  ".join(map(str.rjust, row, widths)) for row in cells),
        ]
    )


def _cells(row: _Row) -> tuple[str, ...]:
    of = row.outcome
    batches = (f"{of.mean_batch[name]:.1f}" if name in of.mean_batch else "-" for name in ("image", "text"))
    latencies = ("grows", "grows") if of.is_saturated else (_ms(of.latency(50)), _ms(of.latency(99)))
    return (
        *(str(row.replicas), _number(row.rate_each), f"{of.device_busy:.0%}", f"{of.cores_busy:.0%}"),
        *(*batches, *latencies),
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ms(seconds: float) -> str:
    return f"{_number(1e3 * seconds)} ms"


def _progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> int:
    return command_failed("plan", message, code)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"invalid value {text}: must be greater than 0")
    return value


def _at_least_1(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"invalid value {text}: must be 1 or more")
    return value


def _many(text: str) -> int:
    value = int(text)
    if value < _MIN_CALLS:
        raise argparse.ArgumentTypeError(
            f"invalid value {text}: must be {_MIN_CALLS} or more, of which 10 are slower than the p99"
        )
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"invalid value {text}: must be from 0 to 1")
    return value


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise argparse.ArgumentTypeError(
            f"invalid range {text!r}: use MIN-MAX, for example 5-20, or one number"
        )
    return low, high


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(f"invalid size {text!r}: use WIDTHxHEIGHT, for example 640x480")
    return int(match[1]), int(match[2])
