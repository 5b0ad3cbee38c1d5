"""The sources of a job: what the command line says about them, and what of them is not read."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from alignserve._cli.output import complain
from alignserve._results import ModelInfo
from alignserve._suffixes import IMAGE_SUFFIXES, OPTIONAL_IMAGE_SUFFIXES
from alignserve.datasets.source import Dataset, SourceError
from alignserve.datasets.sources import SourceOptions


def source_options(args: argparse.Namespace, info: ModelInfo | None) -> SourceOptions:
    """Returns what the arguments say about columns, and the server about images."""
    is_of_texts = getattr(args, "embed", None) == ("text",)
    options = SourceOptions(
        kind=args.kind,
        image_column="" if is_of_texts else args.image_column,
        text_column=args.text_column,
        key_column=args.key_column,
        columns=args.columns or (),
        image_root=args.image_root,
        delimiter=args.delimiter,
        reads_images=False,  # the jobs read them, when they are needed
    )
    if info is None:
        return options
    return dataclasses.replace(
        options, image_suffixes=_readable_suffixes(info), max_image_bytes=info.max_image_bytes
    )


def stated_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what the arguments say about columns, for a manifest: a resumed run must say the same."""
    return {
        "kind": args.kind,
        "image_column": args.image_column,
        "text_column": args.text_column,
        "key_column": args.key_column,
        "columns": args.columns,
        "image_root": os.path.abspath(args.image_root) if args.image_root else None,  # noqa: PTH100
        "delimiter": args.delimiter,
    }


def opened(open_sources: Callable[[], Dataset]) -> Dataset:
    """Opens the dataset of a command, and names what of it is not read.

    Raises:
        ValueError: A source is missing, or it is not clear what it is.
    """
    try:
        dataset = open_sources()
    except SourceError as error:
        raise ValueError(str(error)) from error
    for problem in dataset.problems:
        complain(f"problem: {problem}")
    complain_of_skipped(dataset.skipped)
    return dataset


def complain_of_skipped(skipped: Mapping[str, int]) -> None:
    """Names the kinds of files that are not rows, if there are any, with their numbers."""
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        complain(f"skipped files, which are not rows: {kinds}")


def _readable_suffixes(info: ModelInfo) -> frozenset[str]:
    optional = {
        suffix
        for suffix, names in OPTIONAL_IMAGE_SUFFIXES.items()
        if any(name in info.image_formats for name in names)
    }
    return IMAGE_SUFFIXES | optional
