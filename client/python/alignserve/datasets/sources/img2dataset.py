"""Recognizes the output of img2dataset, in all of its formats but TFRecord.

Next to shard `00012`, which is a folder of files, a tar or a Parquet file, img2dataset writes
`00012_stats.json` when the shard is done and, unless the shard is Parquet, `00012.parquet` with the metadata
of all rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field

from alignserve.datasets.sources.files import FileError, read_file
from alignserve.datasets.walk import Folder

_STATISTICS = re.compile(r"(\d+)_stats\.json")
_SHARD = re.compile(r"(\d+)\.(?:tar|parquet|tfrecord)")
_MAX_STATISTICS_BYTES = 16 << 20


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


def look(folder: Folder) -> Img2dataset:
    """Returns what img2dataset says of a folder; nothing, if it did not write it."""
    statistics = {match[1]: name for name in folder.files if (match := _STATISTICS.fullmatch(name))}
    if not statistics:
        return Img2dataset()
    files = set(folder.files)
    described = [shard for shard in statistics if f"{shard}.tar" in files or shard in folder.folders]
    records = [name.removesuffix(".tfrecord") for name in folder.files if name.endswith(".tfrecord")]
    metadata = files & {f"{shard}.parquet" for shard in (*described, *records)}
    missing = sum(_missing(f"{folder.path}/{statistics[shard]}") for shard in described)
    skipped = {
        "statistics of img2dataset": len(statistics),
        "metadata of img2dataset": len(metadata),
        "not downloaded by img2dataset": missing,
    }
    problems = [
        f"{folder.path}/{shard}: img2dataset did not finish this shard, or its statistics are lost"
        for shard in sorted(_shards(folder) - statistics.keys())
    ]
    if records:
        problems.append(f"{folder.path}: TFRecord is not read; let img2dataset write webdataset or Parquet")
    return Img2dataset({*statistics.values(), *metadata}, +Counter(skipped), problems)


def _shards(folder: Folder) -> set[str]:
    files = {match[1] for name in folder.files if (match := _SHARD.fullmatch(name))}
    return files.union(name for name in folder.folders if name.isdecimal())


def _missing(path: str) -> int:
    """Returns the number of rows of a shard that were not downloaded; 0 if its statistics do not say."""
    try:
        statistics = json.loads(read_file(path, _MAX_STATISTICS_BYTES))
        return max(0, int(statistics["count"]) - int(statistics["successes"]))
    except (FileError, ValueError, KeyError, TypeError):
        return 0
