"""The command line of a job on Ray: its own options, and those of the `alignserve` command that it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import ray
from alignserve._cli import arguments

_PATHS = ("folder", "image_root", "ca_file", "certificate_file", "certificate_key_file")


def parsed(
    command: str,
    module: str,
    description: str,
    argv: Sequence[str] | None,
    *,
    paths: Sequence[str] = (),
) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Returns the job's own options, and those of the command.

    An invalid command line raises `SystemExit(2)`. Paths become absolute, since workers run in other folders.

    Args:
        command: Of `alignserve`, such as `embed-dataset`.
        module: Which is run, for the help.
        description: For the help.
        argv: The command line; `None` is that of the process.
        paths: Options of the command with paths, besides those that all jobs have.
    """
    own = argparse.ArgumentParser(
        prog=f"python -m {module}",
        usage="%(prog)s [--workers N] [--cluster ADDRESS] SOURCE... --to FOLDER [OPTION...]",
        description=description,
        epilog=f"All other arguments are those of `alignserve {command}`. The paths of the source and the "
        "output, and the addresses of servers, must be valid on every node.",
        allow_abbrev=False,
    )
    own.add_argument(
        "--workers", metavar="N", type=int, help="actors, of one CPU each (default: one per node)"
    )
    own.add_argument(
        "--cluster", metavar="ADDRESS", default="auto", help="address of the Ray cluster (default: auto)"
    )
    ours, rest = own.parse_known_args(argv)
    args = arguments.parser().parse_args([command, *rest])
    args.source = [str(Path(each).absolute()) for each in args.source]
    for name in (*_PATHS, *paths):
        value = getattr(args, name)
        if isinstance(value, list):
            setattr(args, name, [path.absolute() for path in value])
        elif value is not None:
            setattr(args, name, value.absolute())
    return ours, args


def join_cluster(ours: argparse.Namespace) -> int:
    """Joins the cluster, and returns the number of workers, by default one per node."""
    ray.init(address=ours.cluster, log_to_driver=False)
    count: int = ours.workers or sum(node["Alive"] for node in ray.nodes())
    return count
