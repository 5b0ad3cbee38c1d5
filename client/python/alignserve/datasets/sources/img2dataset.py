"""Recognizes the output of img2dataset, in all of its formats but TFRecord.

Next to shard `00012`, which is a folder of files, a tar or a Parquet file, img2dataset writes
`00012_stats.json` when the shard is done and, unless the shard is Parquet, `00012.parquet` with the metadata
of all rows. The statistics are often not passed on with the data, so the metadata are recognized without
them.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from alignserve.datasets.sources import parquet
from alignserve.datasets.sources.files import FileError, read_file
from alignserve.datasets.sources.kinds import Kind, kind_of_name
from alignserve.datasets.sources.types import is_bytes_type
from alignserve.datasets.walk import Folder

_STATISTICS = re.compile(r"(\d+)_stats\.json")
_SHARD = re.compile(r"(\d+)\.(?:tar|parquet|tfrecord)")
_KEY = "key"  # in the metadata: the name of the image's file
_MAX_STATISTICS_BYTES = 16 << 20
_METADATA = "metadata of img2dataset"


@dataclass(slots=True)
class Img2dataset:
    """What img2dataset says of a folder.

    Attributes:
        ignored: Names of files that are not data.
        skipped: Number of files of statistics and of metadata, and of rows that were not downloaded and so
            are not in the data. In Parquet they are, and fail there.
        problems: Shards that it did not finish, and data in TFRecord, which is not read.
    """

    ignored: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def look(folder: Folder, image_suffixes: frozenset[str], *, reads_metadata: bool = False) -> Img2dataset:
    """Returns what img2dataset says of a folder; nothing, if it did not write it.

    Args:
        folder: Of the shards.
        image_suffixes: Of image files.
        reads_metadata: Whether the metadata are the data that is asked for.
    """
    statistics = {match[1]: name for name in folder.files if (match := _STATISTICS.fullmatch(name))}
    files = set(folder.files)
    shards = sorted(_shards(folder))
    described = [shard for shard in shards if f"{shard}.tar" in files or shard in folder.folders]
    metadata = set() if reads_metadata else files & {f"{shard}.parquet" for shard in described}
    if not statistics:
        metadata = {name for name in metadata if _is_metadata(folder.path, name, files, image_suffixes)}
        return Img2dataset(metadata, +Counter({_METADATA: len(metadata)}))
    records = [name for name in folder.files if name.endswith(".tfrecord")]
    if not reads_metadata:
        metadata |= files & {f"{name.removesuffix('.tfrecord')}.parquet" for name in records}
    done = [shard for shard in described if shard in statistics]
    missing = sum(_missing(f"{folder.path}/{statistics[shard]}") for shard in done)
    skipped = {
        "statistics of img2dataset": len(statistics),
        _METADATA: len(metadata),
        "not downloaded by img2dataset": missing,
    }
    problems = [
        f"{folder.path}/{shard}: img2dataset did not finish this shard, or its statistics are lost"
        for shard in shards
        if shard not in statistics
    ]
    if records:
        problems.append(f"{folder.path}: TFRecord is not read; let img2dataset write webdataset or Parquet")
    return Img2dataset({*statistics.values(), *metadata, *records}, +Counter(skipped), problems)


def _shards(folder: Folder) -> set[str]:
    files = {match[1] for name in folder.files if (match := _SHARD.fullmatch(name))}
    return files.union(name for name in folder.folders if name.isdecimal())


def _is_metadata(folder: str, name: str, files: set[str], image_suffixes: frozenset[str]) -> bool:
    """Returns whether a Parquet file describes the tar or the folder of images of its name."""
    path = os.path.join(folder, name)  # noqa: PTH118 — a `str`
    shard = path.removesuffix(".parquet")
    if name.replace(".parquet", ".tar") not in files and not _has_images(shard, image_suffixes):
        return False
    try:
        schema = parquet.schema_of(Path(path))
    except FileError:
        return False
    return _KEY in schema.names and not any(map(is_bytes_type, schema.types))


def _has_images(folder: str, suffixes: frozenset[str]) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(kind_of_name(entry.name, suffixes) is Kind.IMAGES for entry in entries)
    except OSError:
        return False


def _missing(path: str) -> int:
    """Returns the number of rows of a shard that were not downloaded; 0 if its statistics do not say."""
    try:
        statistics = json.loads(read_file(path, _MAX_STATISTICS_BYTES))
        return max(0, int(statistics["count"]) - int(statistics["successes"]))
    except (FileError, ValueError, KeyError, TypeError):
        return 0
