"""Options that say where the inputs of stored vectors are, for commands that embed some of them again."""

from __future__ import annotations

import argparse

from alignserve._cli.embed_dataset import add_source_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    group = parser.add_argument_group("inputs")
    group.add_argument(
        "--source",
        metavar="PATH",
        nargs="+",
        action="extend",
        default=[],
        help="the source that was embedded; rows are found by their keys (default: the texts, and the files "
        "or bytes of images, that are kept with the vectors)",
    )
    parser.set_defaults(columns=())
    add_source_arguments(group, kept=None)
