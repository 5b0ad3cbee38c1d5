"""Options that say where the inputs of stored vectors are, for commands that embed some of them again."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    group = parser.add_argument_group("inputs")
    group.add_argument(
        "--source",
        metavar="PATH",
        nargs="+",
        action="extend",
        default=[],
        help="what alignserve embed-dataset read; rows are found by their keys (default: the text and the "
        "image paths that FOLDER keeps)",
    )
    group.add_argument(
        "--image-column", metavar="NAME", help="column of image files, in the source or else in FOLDER"
    )
    group.add_argument("--text-column", metavar="NAME", help="column of texts in the source")
    group.add_argument("--key-column", metavar="NAME", help="column of keys in the source")
    group.add_argument(
        "--image-root", metavar="DIR", type=Path, help="folder that relative image paths start from"
    )
