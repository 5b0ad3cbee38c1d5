"""The command `compact-vectors`: its arguments. `compact_vectors_job` does the work, and needs an extra."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignserve._cli.extras import require
from alignserve._cli.numbers import count, share

SUMMARY = "write smaller vectors, and measure the recall that they leave"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="vectors that alignserve embed-dataset wrote"
    )
    parser.add_argument("--to", metavar="FOLDER", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8", "binary"),
        default="float16",
        help="data type of the result; binary is the signs, eight in each byte (default: float16)",
    )
    parser.add_argument("--dimensions", metavar="N", type=count, help="dimensions to keep (default: all)")
    parser.add_argument(
        "--rotation",
        choices=("none", "pca", "itq"),
        help="how to keep the most in fewer dimensions, or in signs (default: itq for binary, pca with "
        "--dimensions, otherwise none)",
    )
    parser.add_argument(
        "--texts",
        metavar="FOLDER",
        type=Path,
        help="vectors of texts such as users search for, by the same model: to fit to, and to measure "
        "text → image with, if FOLDER has no texts",
    )
    parser.add_argument(
        "--sample", metavar="N", type=count, default=20_000, help="rows to fit to (default: 20000)"
    )
    parser.add_argument(
        "--queries", metavar="N", type=count, default=500, help="rows held out as queries (default: 500)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the choice of rows (default: 0)")
    parser.add_argument(
        "--min-recall",
        metavar="R",
        type=share,
        default=0.0,
        help="write nothing if recall@10 without re-ranking is lower in any direction (default: 0)",
    )
    parser.add_argument("--resume", action="store_true", help="continue an earlier run with the same --to")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_compact_vectors(args: argparse.Namespace) -> int:
    """Writes compact vectors, and returns the exit code."""
    require("pyarrow", extra="search")
    from alignserve._cli import compact_vectors_job

    return compact_vectors_job.run(args)
