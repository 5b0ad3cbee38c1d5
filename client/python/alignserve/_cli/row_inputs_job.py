"""Finds the inputs of stored vectors where the options of `row_inputs` say."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from alignserve.datasets.row import Row
from alignserve.search.inputs import rows_from_folder, rows_from_source
from alignserve.search.vectors import VectorFolder


def rows_with_inputs(
    args: argparse.Namespace, folder: VectorFolder, numbers: NDArray[np.int64]
) -> Iterator[Row]:
    """Yields rows with their inputs, from where the options say.

    Raises:
        VectorsError: The inputs are not there; the message says how to give them.
        ValueError: A source cannot be opened.
    """
    if not args.source:
        return rows_from_folder(folder, numbers, image_column=args.image_column, image_root=args.image_root)
    from alignserve.datasets.sources import SourceOptions, open_dataset

    options = SourceOptions(
        image_column=args.image_column,
        text_column=args.text_column,
        key_column=args.key_column,
        image_root=args.image_root,
    )
    return rows_from_source(folder.keys(numbers), open_dataset(args.source, options))
