"""The command `migrate-vectors`: its arguments. `migrate_vectors_job` does the work, and needs an extra."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignserve._cli import row_inputs
from alignserve._cli.extras import require
from alignserve._cli.numbers import count, share

SUMMARY = "map vectors of an old model to a new one, fitted on a sample that both have embedded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.set_defaults(default_priority="bulk")
    parser.add_argument("old", metavar="OLD", type=Path, help="vectors of the old model")
    parser.add_argument("--to", metavar="FOLDER", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--paired",
        metavar="NEW",
        type=Path,
        help="vectors of some of the same rows by the new model, with the same keys (default: embed a sample "
        "on the server, which serves the new model)",
    )
    parser.add_argument(
        "--sample", metavar="N", type=count, default=5000, help="rows to fit and measure with (default: 5000)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the choice of rows (default: 0)")
    parser.add_argument(
        "--texts",
        metavar="FOLDER",
        type=Path,
        help="vectors of texts by the new model, to measure text → image with, if OLD has no texts",
    )
    parser.add_argument(
        "--min-recall",
        metavar="R",
        type=share,
        default=0.9,
        help="write nothing if recall@10 on the rows held out is lower in any direction (default: 0.9)",
    )
    parser.add_argument(
        "--force", action="store_true", help="write the folder even if the recall is below --min-recall"
    )
    row_inputs.add_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="continue an earlier run with the same --to")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_migrate_vectors(args: argparse.Namespace) -> int:
    """Writes mapped vectors, and returns the exit code."""
    require("pyarrow", extra="search")
    from alignserve._cli import migrate_vectors_job

    return migrate_vectors_job.run(args)
