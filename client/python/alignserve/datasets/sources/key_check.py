"""Checks that the keys of a column are unique in a dataset."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np

from alignserve.datasets.source import BrokenSourceError, SourceError, SourceFile
from alignserve.datasets.sources.delimited import DelimitedFile
from alignserve.datasets.sources.image_files import ImageBlock
from alignserve.datasets.sources.json_lines import JsonLinesFile
from alignserve.datasets.sources.parquet import ParquetFile
from alignserve.datasets.sources.tars import TarFile

_HASH_BYTES = 8


def check_keys(files: Sequence[SourceFile]) -> None:
    """Reads the keys of all rows, which needs up to 32 bytes of memory for each.

    Those of images and tars too, which are names: a key of a table may be the name of a picture.

    Raises:
        SourceError: A key comes twice.
    """
    hashes = array("Q")
    for _, key in _keys(files):
        hashes.frombytes(_hash(key))
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    repeated = {value.tobytes() for value in values[counts > 1]}
    places: dict[str, str] = {}
    for name, key in _keys(files) if repeated else ():
        if _hash(key) not in repeated:
            continue
        if key in places:
            raise SourceError(
                f"the key '{key}' comes twice, in {places[key]} and {name}; keys must be unique"
            )
        places[key] = name


def _keys(files: Sequence[SourceFile]) -> Iterator[tuple[str, str]]:
    """Yields the name of the file and the key of each row."""
    for file in files:
        if not isinstance(file, (DelimitedFile, ImageBlock, JsonLinesFile, ParquetFile, TarFile)):
            continue  # it cannot be read
        keys_only = replace(file, builder=replace(file.builder, image=None, text=None, kept=()))
        try:
            for row, _ in keys_only.rows():
                yield file.name, row.key
        except BrokenSourceError:
            continue  # it is named when its rows are read


def _hash(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
