"""The command `search`: its arguments. What it does is in `search_job`, which needs an extra."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from alignserve._cli.extras import require
from alignserve._cli.numbers import count
from alignserve._cli.terms import add_like, add_terms

_EPILOG = """\
examples:
  alignserve search photos.store --text 'a red bag'
  alignserve search photos.store --image bag.jpg --text 'made of straw' --weight 0.5 --minus leather
  alignserve search photos.store --text 'a red bag' --where license=CC0 --where-min width=640
  alignserve search photos.store --like bags/1.jpg --html found.html
  alignserve search photos.store --queries-file queries.jsonl >answers.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command; those of the connection are there already."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.set_defaults(conditions=[])
    parser.add_argument(
        "store", metavar="STORE", help="folder or URL of a store, or the output of embed-dataset"
    )
    _add_queries(parser)
    _add_filter(parser)
    parser.add_argument(
        "--top-k", metavar="N", type=count, default=10, help="number of rows to find (default: 10)"
    )
    parser.add_argument(
        "--min-similarity", metavar="S", type=_similarity, help="only rows of at least this cosine similarity"
    )
    _add_output(parser)


def run_search(args: argparse.Namespace) -> int:
    """Answers the query or the file of queries, and returns the exit code."""
    require("lancedb", "pyarrow", extra="search")
    from alignserve._cli import search_job

    return search_job.run(args)


def _add_queries(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("query", "Terms are added up with their weights.")
    add_terms(group)
    add_like(group)
    group.add_argument("--truncate", action="store_true", help="truncate texts that are too long")
    group.add_argument(
        "--queries-file",
        metavar="FILE",
        help="many queries, a JSON object per line, or - for stdin; the answers are printed as JSON Lines",
    )


def _add_filter(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "filter",
        "Only rows that meet all conditions are compared. A value is all that follows the first =.",
    )
    for option, operator, text in (
        ("--where", "equals", "rows with this value; a column may be given again, for other values"),
        ("--where-min", "min", "rows with at least this value"),
        ("--where-max", "max", "rows with at most this value"),
        ("--where-contains", "contains", "rows whose text has this in it, in the same case"),
    ):
        group.add_argument(
            option, metavar="COLUMN=VALUE", action=_AddCondition, const=operator, dest="conditions", help=text
        )
    group.add_argument(
        "--where-json", metavar="JSON", help="the filter as an object, as in a file of queries", default=None
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print JSON instead of a table")
    group.add_argument(
        "--html", metavar="FILE", type=Path, help="also write a contact sheet with thumbnails, one HTML file"
    )
    group.add_argument(
        "--images",
        metavar="DIR",
        type=Path,
        help="folder of the pictures, if the store does not say where they are, or they have moved",
    )
    group.add_argument("--page", metavar="URL", help="address of the server's page, for a link in the sheet")


class _AddCondition(argparse.Action):
    """Adds a condition on a column, as `const` says."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: Any = None
    ) -> None:
        column, equals, text = value.partition("=")
        if not equals:
            parser.error(f"{option}: {value!r} is not COLUMN=VALUE")
        namespace.conditions = [*namespace.conditions, (column, self.const, text)]


def _similarity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a similarity from -1 to 1")
    return value
