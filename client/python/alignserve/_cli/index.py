"""The command `index`: makes a store searchable, and keeps it up to date."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignserve._cli.connection import connected
from alignserve._cli.extras import require

if TYPE_CHECKING:  # they need the extra
    from alignserve.search.indexing import Counts, Failure
    from alignserve.search.sources import Source

_NAMED_FAILURES = 20  # on the terminal; --failures has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="+",
        help="folder of photos or another source of embed-dataset, its output, or a Parquet file with vectors",
    )
    parser.add_argument(
        "--to",
        metavar="STORE",
        required=True,
        help="the store, created if it does not exist: a folder, or a URL of an object store or a LanceDB server",
    )
    parser.add_argument(
        "--vectors",
        metavar="COLUMN",
        help="column of vectors in Parquet files (default: image_embedding, else text_embedding)",
    )
    parser.add_argument(
        "--fingerprint",
        metavar="F",
        help="fingerprint of the model that made the vectors, for Parquet files that do not have it",
    )
    parser.add_argument(
        "--key-prefix",
        metavar="PREFIX",
        default="",
        help="put this before the keys of the rows, if another source has the same",
    )
    parser.add_argument("--truncate", action="store_true", help="truncate texts that are too long")
    parser.add_argument(
        "--keep-missing", action="store_true", help="keep rows that are no longer in their source"
    )
    parser.add_argument(
        "--window", metavar="N", type=int, default=64, help="rows in flight to the server (default: 64)"
    )
    parser.add_argument("--failures", metavar="FILE", type=Path, help="write a line of JSON for each row that failed")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
