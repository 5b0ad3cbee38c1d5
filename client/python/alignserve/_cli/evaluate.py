"""The command `evaluate`: its arguments. What it does is in `evaluation_job`, which needs an extra."""

from __future__ import annotations

import argparse
from pathlib import Path

from alignserve._cli import numbers
from alignserve._cli.embed_dataset import add_source_arguments
from alignserve._cli.extras import require
from alignserve.evaluate.calibration import DEFAULT_BINS

SUMMARY = "measure a model on labelled images, captions or questions"

_TASKS = ("classification", "retrieval", "questions")
_EPILOG = """\
sources:
  classification  a folder with a folder of images for each class, a table with a column of classes, or tars
                  with .cls; also the folders that CLIP_benchmark writes, with their names and templates
  retrieval       a table or tars of images and captions, dataset_flickr30k.json, dataset_coco.json or
                  captions_val2017.json
  questions       JSON Lines: {"image": "cat.jpg", "labels": ["a cat", "a dog"], "answer": "a cat",
                  "kind": "animals"}

examples:
  alignserve evaluate photos/ --template 'a photo of a {label}'
  alignserve evaluate imagenet/val --classes classes.json --templates templates.txt
  alignserve evaluate dataset_flickr30k.json --image-root flickr30k-images --to flickr30k
  alignserve evaluate questions.jsonl --to answers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command; those of the connection are there already."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.set_defaults(default_priority="bulk", columns=())
    parser.add_argument("source", metavar="SOURCE", help="file, folder, or pattern in quotes")
    parser.add_argument("--task", choices=_TASKS, help="what to measure (default: found by the source)")
    parser.add_argument(
        "--to",
        metavar="FOLDER",
        dest="folder",
        type=Path,
        help="write report.json, answers.jsonl, failures.jsonl and reliability.svg",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--window", metavar="N", type=numbers.count, default=64, help="images in flight (default: 64)"
    )
    parser.add_argument(
        "--bins",
        metavar="N",
        type=numbers.count,
        default=DEFAULT_BINS,
        help=f"of the calibration error (default: {DEFAULT_BINS})",
    )
    parser.add_argument("--split", default="test", help="of sets that have several (default: test)")
    _add_labels(parser.add_argument_group("labels"))
    _add_captions(parser.add_argument_group("captions"))
    add_source_arguments(parser.add_argument_group("source"), kept=None)


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluates the server's model, and returns the exit code."""
    require("pyarrow", extra="datasets")
    from alignserve._cli import evaluation_job

    if args.template and args.templates is not None:
        args.usage_error("give templates with --template or with --templates, not with both")
    return evaluation_job.run(args)


def _add_labels(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--template", action="append", default=[], help="prompt with {label} in it; several are averaged"
    )
    group.add_argument(
        "--templates",
        metavar="FILE",
        type=Path,
        help="templates, one per line, or JSON with a list of them or with texts for each class",
    )
    group.add_argument(
        "--classes",
        metavar="FILE",
        type=Path,
        help="names of the classes, one per line in their order, or JSON with names by folder or class "
        "(default: the names of the folders, with spaces for _)",
    )
    group.add_argument(
        "--dataset-name",
        metavar="NAME",
        help="entry in the files of --classes and --templates, if they are of several datasets",
    )
    group.add_argument(
        "--class-column", metavar="NAME", help="column of classes; in tars a suffix (default: cls)"
    )
    group.add_argument(
        "--gallery",
        metavar="SOURCE",
        help="look for nearest images here, such as in the training images (default: in the rest of SOURCE)",
    )


def _add_captions(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--captions-column",
        metavar="NAME",
        help="column with a list of captions in each row (default: captions, if there is one)",
    )
    group.add_argument(
        "--captions-per-image", metavar="N", type=numbers.count, help="leave out more (default: take all)"
    )
