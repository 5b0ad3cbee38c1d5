"""Finds the inputs of stored vectors where the options of `row_inputs` say."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from alignserve._cli.job_sources import source_options
from alignserve._suffixes import IMAGE_SUFFIXES, OPTIONAL_IMAGE_SUFFIXES
from alignserve.datasets.row import Row
from alignserve.datasets.source import SourceError
from alignserve.datasets.sources import open_dataset
from alignserve.search.inputs import rows_from_source


def rows_with_inputs(
    args: argparse.Namespace, keys: Iterable[str], kept: Callable[[], Iterator[Row]]
) -> Iterator[Row]:
    """Returns rows with their inputs, from where the options say.

    Args:
        args: Of the command.
        keys: Of the rows.
        kept: Returns the rows with the inputs that are kept with the vectors.

    Raises:
        VectorsError: The inputs are not there; the message says how to give them.
        ValueError: A source cannot be opened.
    """
    if not args.source:
        return kept()
    # Whatever the server at the time could read; this one refuses what it cannot.
    suffixes = IMAGE_SUFFIXES | OPTIONAL_IMAGE_SUFFIXES.keys()
    options = replace(source_options(args, None), image_suffixes=suffixes)
    try:
        return rows_from_source(keys, open_dataset(args.source, options))
    except SourceError as error:
        raise ValueError(str(error)) from error
