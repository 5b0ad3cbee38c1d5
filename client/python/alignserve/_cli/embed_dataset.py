"""The command `embed-dataset`: its arguments. What it does is in `embedding_job`, which needs an extra."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignserve._cli import numbers
from alignserve._cli.extras import require

_KINDS = ("image", "text")
_SOURCES = ("images", "parquet", "csv", "json-lines", "tar")
_EPILOG = """\
sources: folders and files of images, Parquet, CSV and TSV, JSON Lines, and tars of webdataset and
img2dataset; several at once, and patterns in quotes.

Rows that fail are counted, and listed in FOLDER/failures.jsonl; --only takes that file to embed them
again, into another folder. A run that ends early keeps its finished shards, and the same command with
--resume does the rest.

examples:
  alignserve embed-dataset photos/ --to vectors
  alignserve embed-dataset photos/ --to vectors --resume
  alignserve embed-dataset 'laion/*.tar' --to vectors --layout clip-retrieval --server a:50051,b:50051
  alignserve embed-dataset pairs.parquet --to vectors --text-column caption --dtype float16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command; those of the connection are there already."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.set_defaults(default_priority="bulk")
    parser.add_argument("source", metavar="SOURCE", nargs="+", help="file, folder, or pattern in quotes")
    parser.add_argument("--to", metavar="FOLDER", type=Path, help="folder for the output", dest="folder")
    parser.add_argument(
        "--resume", action="store_true", help="go on with what an earlier run with the same --to has left"
    )
    parser.add_argument(
        "--only",
        metavar="FILE",
        type=Path,
        help="only the rows with the keys in this file, as failures.jsonl has them",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only read the rows and count them; needs no server, writes nothing",
    )
    add_source_arguments(parser.add_argument_group("source"))
    _add_output(parser.add_argument_group("output"))
    _add_speed(parser.add_argument_group("speed"))


def run_embed_dataset(args: argparse.Namespace) -> int:
    """Embeds the rows of datasets, and returns the exit code."""
    require("pyarrow", extra="datasets")
    from alignserve._cli import embedding_job

    if args.folder is None and not args.dry_run:
        args.usage_error("embed-dataset needs --to FOLDER")
    return embedding_job.run(args)


def add_source_arguments(
    group: argparse._ArgumentGroup,
    *,
    columns: tuple[str, ...] | None = (),
    kept: str | None = "other columns to keep, or * for all of Parquet and CSV (default: none)",
) -> None:
    """Adds the arguments about sources and their columns.

    Args:
        group: Where to.
        columns: Those that are kept by default.
        kept: Help on the columns that are kept; `None` for a command that chooses them itself.
    """
    group.add_argument(
        "--kind",
        choices=_SOURCES,
        help="of all sources (default: found by their names and contents)",
    )
    group.add_argument("--image-column", metavar="NAME", help="column of images or of their paths")
    group.add_argument("--text-column", metavar="NAME", help="column of texts")
    group.add_argument(
        "--key-column", metavar="NAME", help="column of unique keys (default: made of file and row)"
    )
    if kept is not None:
        group.add_argument("--columns", metavar="NAMES", type=_names, default=columns, help=kept)
    group.add_argument(
        "--image-root",
        metavar="FOLDER",
        type=Path,
        help="where relative paths begin (default: the table's folder)",
    )
    group.add_argument(
        "--delimiter", metavar="C", help="between the cells of CSV (default: found in the header)"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--embed",
        metavar="KINDS",
        type=_kinds,
        help="image, text or image,text; a row fails if one of them does (default: what the source has)",
    )
    group.add_argument(
        "--layout",
        choices=("parquet", "clip-retrieval"),
        default="parquet",
        help="parquet, or clip-retrieval's folders of npy and Parquet (default: parquet)",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the embeddings (default: float32)",
    )
    group.add_argument("--truncate", action="store_true", help="truncate texts that are too long")
    group.add_argument(
        "--rows-per-shard",
        metavar="N",
        type=numbers.count,
        default=10_000,
        help="maximum number of rows in a file of the output (default: 10000)",
    )


def _add_speed(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--streams", metavar="N", type=numbers.count, default=2, help="streams to each server (default: 2)"
    )
    group.add_argument(
        "--window",
        metavar="N",
        type=numbers.count,
        help="items in flight per stream (default: the server's limit)",
    )
    group.add_argument(
        "--read-threads",
        metavar="N",
        type=numbers.count,
        default=8,
        help="threads that read image files (default: 8)",
    )
    group.add_argument(
        "--max-outage-seconds",
        metavar="S",
        type=numbers.positive,
        default=300.0,
        help="end the run if no server answers for this long (default: 300)",
    )
    group.add_argument(
        "--count", action="store_true", help="count the rows first, so that the time left is exact"
    )


def _kinds(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if set(names) - set(_KINDS):
        raise argparse.ArgumentTypeError(f"'{text}' is not image, text or image,text")
    return tuple(kind for kind in _KINDS if kind in names)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
