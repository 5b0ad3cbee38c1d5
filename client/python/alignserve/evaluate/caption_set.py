"""Images with captions: tables, tars and the files of Flickr30k and COCO."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.source import Dataset, SourceError
from alignserve.datasets.sources import Kind, open_dataset
from alignserve.datasets.sources.kinds import kind_of_name
from alignserve.evaluate.caption_files import is_caption_file, read_captions
from alignserve.evaluate.clip_benchmark import ClipBenchmarkSet
from alignserve.evaluate.inputs import Input
from alignserve.evaluate.sets import Reading, SetOptions

DEFAULT_COLUMN = "captions"

CaptionedRow: TypeAlias = tuple[Row, Sequence[str]]
_NO_IMAGE = RowFailure("IMAGE_MISSING", "the row has no image")
_NO_CAPTION = RowFailure("CAPTION_MISSING", "the row has no caption")


@dataclass(frozen=True, slots=True)
class Picture:
    """What an image is about: its number, from 0."""

    number: int


@dataclass(frozen=True, slots=True)
class Caption:
    """What a caption is about: the number of its image."""

    image: int


@dataclass(slots=True)
class CaptionSet:
    """Images with any number of captions each.

    Rows with the same image, by its path or its content, are one image.

    Attributes:
        rows: Yields the rows with their captions.
        captions_per_image: More are left out.
        reading: What could not be read.
        total: Number of rows, if it is known.
    """

    rows: Callable[[], Iterator[CaptionedRow]]
    captions_per_image: int | None = None
    reading: Reading = field(default_factory=Reading)
    total: int | None = None

    def inputs(self) -> Iterator[Input]:
        """Yields each image before its captions, with a `Picture` or `Caption` in `about`."""
        numbers: dict[str | bytes, int] = {}
        counts: list[int] = []  # of captions, by image
        for row, captions in self.rows():
            failure = row.failure or (_NO_IMAGE if row.image is None else None)
            failure = failure or (None if captions else _NO_CAPTION)
            if failure is not None or row.image is None:
                yield Input(row.key, failure=failure)
                continue
            number = numbers.setdefault(_identity(row.image), len(numbers))
            if number == len(counts):
                counts.append(0)
                yield Input(row.key, row.image, about=Picture(number))
            for caption in captions:
                if self.captions_per_image is None or counts[number] < self.captions_per_image:
                    counts[number] += 1
                    key = f"{row.key}, caption {counts[number]}"
                    yield Input(key, caption, about=Caption(number), truncate=True)


def open_captions(source: str, options: SetOptions) -> CaptionSet:
    """Opens images with captions.

    Args:
        source: A table or tars or a pattern of them, a folder of images with texts next to them, a folder
            with a set of CLIP_benchmark, or JSON in the form of Karpathy's splits or of COCO.
        options: How to read it.

    Raises:
        SourceError: It cannot be read, or has no images or no captions.
        ValueError: A file of JSON has another form.
    """
    if is_caption_file(source):
        rows = read_captions(Path(source), options.split, options.source.image_root)
        return CaptionSet(lambda: iter(rows), options.captions_per_image, total=len(rows))
    clip_benchmark = ClipBenchmarkSet.at(source, options.split)
    if clip_benchmark is not None:
        source = str(clip_benchmark.folder)
    dataset, column = _opened(source, options)
    if not dataset.has_images:
        raise SourceError(f"{source} has no images; name their column with --image-column")
    if not dataset.has_texts and column is None:
        raise SourceError(f"{source} has no captions; name their column with --text-column")
    is_tar = any(kind_of_name(file.name, frozenset()) is Kind.TAR for file in dataset.files)
    reading = Reading.of(dataset, None if clip_benchmark is None else clip_benchmark.other_files(dataset))

    def captioned() -> Iterator[CaptionedRow]:
        for row in reading.rows(dataset):
            yield _captioned(row, column, splits_lines=is_tar)

    return CaptionSet(captioned, options.captions_per_image, reading)


def _opened(source: str, options: SetOptions) -> tuple[Dataset, str | None]:
    """Opens a dataset, with its column of lists of captions if it has one."""
    given = options.captions_column
    if given is not None:
        in_lists = replace(options.source, text_column="", columns=(given,))
        return open_dataset([source], in_lists), given
    plain = open_dataset([source], replace(options.source, columns=()))
    kinds = {kind_of_name(file.name, frozenset()) for file in plain.files}
    if options.source.text_column is not None or not kinds <= {Kind.PARQUET, Kind.JSON_LINES}:
        return plain, None
    try:
        return open_dataset([source], replace(options.source, columns=(DEFAULT_COLUMN,))), DEFAULT_COLUMN
    except SourceError:  # no file has such a column
        return plain, None


def _captioned(row: Row, column: str | None, *, splits_lines: bool) -> CaptionedRow:
    listed = None if column is None else row.columns.get(column)
    if listed is not None:
        try:
            return row, texts_of(listed)
        except ValueError as error:
            return replace(row, failure=row.failure or RowFailure("CAPTIONS_INVALID", str(error))), ()
    if row.text is None:
        return row, ()
    captions = row.text.splitlines() if splits_lines else [row.text]
    return row, [caption for caption in captions if caption.strip()]


def texts_of(value: Any) -> list[str]:
    """Returns a list of texts: of Parquet as it is, and of a column of texts from JSON.

    Raises:
        ValueError: It is something else.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{str(value)[:80]!r} is not a list of texts")
    return [text for text in found if text.strip()]


def _identity(image: bytes | Path) -> str | bytes:
    return str(image) if isinstance(image, Path) else blake2b(image, digest_size=16).digest()
