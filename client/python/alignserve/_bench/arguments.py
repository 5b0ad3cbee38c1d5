"""The command line of `alignserve bench`."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T", int, float)

KINDS = ("image", "text", "classify")
_LABELS = ("cat", "dog", "bird", "car", "house", "tree", "person", "boat", "flower", "cup of coffee")
_PLOT_FORMATS = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command, except those of the connection."""
    _add_load(parser.add_argument_group("load"))
    _add_work(parser.add_argument_group("work"))
    _add_run_length(parser.add_argument_group("run length"))
    _add_output(parser.add_argument_group("output"))


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of the measurement, as data for JSON; the unused kind of load is `None`."""
    own = argparse.ArgumentParser()
    add_arguments(own)
    found = {name: _plain(getattr(args, name)) for name in vars(own.parse_args([]))}
    if args.rate is not None:
        found["concurrency"] = None  # a default that was not used
    return {name: value for name, value in found.items() if name not in _OUTPUTS}


_OUTPUTS = ("json", "save_plot")


def _add_load(group: argparse._ArgumentGroup) -> None:
    kind = group.add_mutually_exclusive_group()
    kind.add_argument(
        "--concurrency",
        metavar="N[,N…]",
        type=_several(int),
        default=[8],
        help="keep N requests in flight; several values are measured in turn (default: 8)",
    )
    kind.add_argument(
        "--rate",
        metavar="R[,R…]",
        type=_several(float),
        help="send R requests per second, answered or not; latency is measured from when each was due",
    )
    group.add_argument(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="with --rate: at random times, like independent clients, or evenly (default: poisson)",
    )
    group.add_argument(
        "--max-in-flight",
        metavar="N",
        type=_at_least_1,
        default=1000,
        help="with --rate: maximum requests in flight; more are sent late, which counts (default: 1000)",
    )
    group.add_argument(
        "--transport",
        choices=("unary", "stream"),
        default="unary",
        help="send requests as unary calls or as items of streams (default: unary)",
    )
    group.add_argument(
        "--streams",
        metavar="N",
        type=_at_least_1,
        default=1,
        help="with --transport stream: number of streams that share the requests in flight (default: 1)",
    )
    group.add_argument(
        "--connections", metavar="N", type=_at_least_1, default=1, help="TCP connections (default: 1)"
    )


def _add_work(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--work", choices=(*KINDS, "mix"), default="image", help="(default: image)")
    group.add_argument(
        "--mix",
        metavar="KIND=N,…",
        type=_weights,
        default={"image": 1.0, "text": 2.0},
        help="with --work mix: proportions of the kinds (default: image=1,text=2)",
    )
    group.add_argument(
        "--images",
        metavar="PATH",
        nargs="+",
        type=Path,
        default=[],
        help="image files and folders (default: generated PNG photos of 640x480)",
    )
    group.add_argument(
        "--texts-file", metavar="FILE", type=Path, help="texts, one per line (default: generated captions)"
    )
    group.add_argument(
        "--text-tokens",
        choices=("short", "mixed", "long"),
        default="mixed",
        help="length of generated captions: about 8, 5 to 50, or 47 tokens; --unique adds 7 (default: mixed)",
    )
    group.add_argument(
        "--items-per-request",
        metavar="N",
        type=_at_least_1,
        default=1,
        help="images or texts in one request (default: 1)",
    )
    group.add_argument(
        "--labels",
        metavar="LABEL",
        nargs="+",
        default=list(_LABELS),
        help="labels for classification (default: ten common things)",
    )
    group.add_argument(
        "--unique",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make each image and text unique so that no cache has it",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=int,
        help="repeat a run: the same inputs at the same times (default: random)",
    )


def _add_run_length(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--duration-seconds",
        metavar="S",
        type=_above_0,
        default=10.0,
        help="duration of each load (default: 10)",
    )
    group.add_argument(
        "--warmup-seconds",
        metavar="S",
        type=_from_0,
        default=2.0,
        help="time before each load that is not counted (default: 2)",
    )
    group.add_argument(
        "--max-requests",
        metavar="N",
        type=_at_least_1,
        help="end each load after N requests, if that is earlier",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write all results as JSON to FILE, or print them instead of the table",
    )
    group.add_argument(
        "--save-plot",
        metavar="FILE",
        type=_plot_file,
        help="plot latency and throughput against load, as .png, .svg or .pdf; needs matplotlib",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _several(kind: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    def read(text: str) -> list[_T]:
        values = [kind(part) for part in text.split(",")]
        if not all(0 < value < float("inf") for value in values):
            raise argparse.ArgumentTypeError(f"{text}: each value must be above 0")
        return values

    read.__name__ = f"list of {kind.__name__}"  # argparse shows it in its message
    return read


def _weights(text: str) -> Mapping[str, float]:
    weights = {}
    for part in text.split(","):
        kind, _, number = part.partition("=")
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is not one of {', '.join(KINDS)}")
        weights[kind] = float(number or 1)
    if min(weights.values()) < 0 or not 0 < sum(weights.values()) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: no number may be below 0, and one must be above 0")
    return weights


def _plot_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _PLOT_FORMATS:
        raise argparse.ArgumentTypeError(f"{text} does not end in {' or '.join(_PLOT_FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("this option needs matplotlib: pip install 'alignserve[bench]'")
    return path


def _at_least_1(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _above_0(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _from_0(text: str) -> float:
    return 0.0 if float(text) == 0 else _above_0(text)
