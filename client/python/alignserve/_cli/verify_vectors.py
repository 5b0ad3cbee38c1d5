"""The command `verify-vectors`: its arguments. `verify_vectors_job` does the work, and needs an extra."""

from __future__ import annotations

import argparse

from alignserve._cli import row_inputs
from alignserve._cli.extras import require
from alignserve._cli.numbers import count

SUMMARY = "embed a sample of stored vectors again, and report how far they have drifted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.set_defaults(default_priority="bulk")
    parser.add_argument(
        "vectors",
        metavar="VECTORS",
        help="folder that alignserve embed-dataset wrote, Parquet file, or store of alignserve index",
    )
    parser.add_argument(
        "--sample", metavar="N", type=count, default=1000, help="rows to embed again (default: 1000)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the choice of rows (default: 0)")
    parser.add_argument(
        "--min-cosine",
        metavar="C",
        type=float,
        help="cosine that every vector must reach (default: 0.999; 0.99 for int8, 0.9 for binary)",
    )
    row_inputs.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_verify_vectors(args: argparse.Namespace) -> int:
    """Verifies vectors, and returns the exit code."""
    require("pyarrow", extra="search")
    from alignserve._cli import verify_vectors_job

    return verify_vectors_job.run(args)
