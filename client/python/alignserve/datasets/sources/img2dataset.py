"""Recognizes the output of img2dataset, in all of its formats but TFRecord.

Next to shard `00012`, which is a folder of files, a tar or a Parquet file, img2dataset writes
`00012_stats.json` when the shard is done and, unless the shard is Parquet, `00012.parquet` with the metadata
of all rows.
"""

from __future__ import annotations

import json
import os
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
        ignored: Names of files that are neither data nor of interest to the user.
        skipped: Number of statistics, and of rows that were not downloaded and so are not in the data. In
            Parquet they are, and fail there.
        problems: Shards that it did not finish, and data in TFRecord, which is not read.
    """

    ignored: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def look(folder: Folder) -> Img2dataset:
    """Returns what img2dataset says of a folder; nothing, if it did not write it."""
    found = Img2dataset()
    statistics = {match[1]: name for name in folder.files if (match := _STATISTICS.fullmatch(name))}
    if not statistics:
        return found
    files = set(folder.files)
    folders = set(folder.folders)
    found.ignored.update(statistics.values())
    found.skipped["statistics of img2dataset"] = len(statistics)
    for shard, name in statistics.items():
        if f"{shard}.tar" in files or shard in folders:
            found.ignored.add(f"{shard}.parquet")
            found.skipped["not downloaded by img2dataset"] += _missing(os.path.join(folder.path, name))  # noqa: PTH118
    found.skipped["metadata of img2dataset"] = len(files & found.ignored) - len(statistics)
    shards = {match[1] for name in folder.files if (match := _SHARD.fullmatch(name))}
    shards.update(name for name in folders if name.isdecimal())
    found.problems += [
        f"{os.path.join(folder.path, shard)}: img2dataset did not finish this shard, or its statistics are lost"  # noqa: PTH118
        for shard in sorted(shards - set(statistics))
    ]
    if records := [name for name in folder.files if name.endswith(".tfrecord")]:
        found.ignored.update(name.replace(".tfrecord", ".parquet") for name in records)
        found.problems.append(
            f"{folder.path}: {len(records)} TFRecord files are not read; let img2dataset write webdataset or parquet"
        )
    found.skipped = +found.skipped
    return found


def _missing(path: str) -> int:
    """Returns the number of rows of a shard that were not downloaded; 0 if its statistics do not say."""
    try:
        statistics = json.loads(read_file(path, _MAX_STATISTICS_BYTES))
        return max(0, int(statistics["count"]) - int(statistics["successes"]))
    except (FileError, ValueError, KeyError, TypeError):
        return 0
