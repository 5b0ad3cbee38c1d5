"""The command `index`: its arguments. What it does is in `index_job`, which needs an extra."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignserve._cli.embed_dataset import add_source_arguments
from alignserve._cli.extras import require

_EPILOG = """\
sources: everything that embed-dataset reads, which the server embeds; and embeddings that exist, which need
no server: the output of embed-dataset, or Parquet files with a column of vectors.

The same command again brings the store up to date: rows that are new or have changed are put, those that
are no longer in the source are removed, and the others are left as they are.

examples:
  alignserve index photos/ --to photos.store
  alignserve index vectors/ --to photos.store
  alignserve index pairs.csv --columns license,width --to pairs.store
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command; those of the connection are there already."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.set_defaults(default_priority="bulk")
    parser.add_argument("source", metavar="SOURCE", nargs="+", help="file, folder, or pattern in quotes")
    parser.add_argument(
        "--to",
        metavar="STORE",
        required=True,
        dest="store",
        help="folder of the store, or its URL (s3://, gs://, az://, db://); created if it does not exist",
    )
    parser.add_argument(
        "--key-prefix",
        metavar="PREFIX",
        default="",
        help="put this before the keys, if another source of the store has the same",
    )
    parser.add_argument(
        "--keep-missing", action="store_true", help="keep rows that are no longer in the source"
    )
    parser.add_argument("--truncate", action="store_true", help="truncate texts that are too long")
    parser.add_argument(
        "--window", metavar="N", type=_positive, default=32, help="rows in flight to the server (default: 32)"
    )
    parser.add_argument(
        "--failures", metavar="FILE", type=Path, help="write a line of JSON for each row that failed"
    )
    parser.add_argument("--json", action="store_true", help="print the account as JSON")
    add_source_arguments(parser.add_argument_group("source"))
    vectors = parser.add_argument_group("vectors that exist")
    vectors.add_argument(
        "--vector-column",
        metavar="NAME",
        help="column of vectors in Parquet (default: image_embedding, otherwise text_embedding)",
    )
    vectors.add_argument(
        "--fingerprint",
        metavar="F",
        help="fingerprint of the model that made them, if the files do not say it; alignserve info prints it",
    )


def run_index(args: argparse.Namespace) -> int:
    """Brings a store up to date with its sources, and returns the exit code."""
    require("lancedb", "pyarrow", extra="search")
    from alignserve._cli import index_job

    return index_job.run(args)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)
