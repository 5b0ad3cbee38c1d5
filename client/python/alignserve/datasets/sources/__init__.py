"""Reads datasets: folders of images, Parquet, CSV, JSON Lines, tars, and the output of img2dataset."""

from alignserve.datasets.sources.kinds import Kind
from alignserve.datasets.sources.opening import open_dataset
from alignserve.datasets.sources.options import ALL_COLUMNS, SourceOptions

__all__ = ["ALL_COLUMNS", "Kind", "SourceOptions", "open_dataset"]
