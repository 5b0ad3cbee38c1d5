"""Images with one class each: a folder for each class, tables with a column, and tars of CLIP_benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.source import Dataset, SourceError
from alignserve.datasets.sources import Kind, SourceOptions, open_dataset
from alignserve.datasets.sources.kinds import kind_of_name
from alignserve.evaluate.class_names import ClassName, ClassNames, Prompts
from alignserve.evaluate.clip_benchmark import ClipBenchmarkSet
from alignserve.evaluate.inputs import Input
from alignserve.evaluate.sets import Reading, SetOptions

CLASS_SUFFIX = "cls"
"""Of the member of a tar with the number of the class."""

_ClassOf: TypeAlias = Callable[[Row], str | None]
_MISSING = RowFailure(
    "CLASS_MISSING", "the row has no class; put images into a folder for each class, or fill the column"
)


@dataclass(slots=True)
class ClassSet:
    """Images with their classes.

    Attributes:
        dataset: The images.
        class_of: Returns the class of a row, as the data names it.
        names: Of all classes, or `None` if those of the data are all there are.
        prompts: Around the names.
        order: Keys in the order that `names` has, if it has no keys itself.
        reading: What could not be read.
        total: Number of rows, if it is known.
        are_folders: Whether classes are folders: numbers may be their names.
        classes: All that are known; those of the data are added while they are read.
    """

    dataset: Dataset
    class_of: _ClassOf
    names: ClassNames | None
    prompts: Prompts
    order: dict[str, int] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    total: int | None = None
    are_folders: bool = False
    classes: list[ClassName] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.names is not None:
            self.classes += self.names.classes

    def inputs(self) -> Iterator[Input]:
        """Yields each image with the number of its class in `about`."""
        for row in self.reading.rows(self.dataset):
            name = None if row.failure is not None else self.class_of(row)
            failure = row.failure or (_MISSING if name is None else None)
            number = None if failure is not None or name is None else self._number(name)
            if failure is None and number is None:
                failure = self._unknown(name)
            if failure is not None or row.image is None:
                missing = RowFailure("IMAGE_MISSING", "the row has no image")
                yield Input(row.key, failure=failure or missing)
            else:
                yield Input(row.key, row.image, about=number, label=name or "")

    def labels(self) -> list[list[str]]:
        """Returns the texts of each class that is known.

        Raises:
            ValueError: There are texts for classes, and none for one of these.
        """
        return [self.prompts.of(each) for each in self.classes]

    def _unknown(self, name: str | None) -> RowFailure:
        if self.names is not None:
            return RowFailure("CLASS_UNKNOWN", f"its class {name!r} is not among those given")
        return RowFailure("CLASS_UNNAMED", f"its class is the number {name}; name the classes with --classes")

    def _number(self, name: str) -> int | None:
        if self.names is None:
            if name.isdecimal() and not self.are_folders:
                return None
            if name not in self._numbers:
                self._numbers[name] = len(self.classes)
                self.classes.append(ClassName((name.replace("_", " "),)))
            return self._numbers[name]
        if self.names.numbers is not None:
            return self.names.numbers.get(name)
        if self.order:
            return self.order.get(name)
        if name.isascii() and name.isdecimal():
            return int(name) if int(name) < len(self.classes) else None
        return next((number for number, each in enumerate(self.classes) if name in each.names), None)


def open_classes(source: str, options: SetOptions) -> ClassSet:
    """Opens images with classes.

    Args:
        source: A folder with a folder for each class, a table or tars or a pattern of them, or a folder with
            a set of CLIP_benchmark.
        options: How to read it.

    Raises:
        SourceError: It cannot be read.
        ValueError: Classes and names do not fit.
    """
    clip_benchmark = ClipBenchmarkSet.at(source, options.split)
    if clip_benchmark is not None:
        options = clip_benchmark.filled(options)
        source = str(clip_benchmark.folder)
    column = options.class_column
    images_only = replace(options.source, text_column="", columns=())
    plain = open_dataset([source], images_only) if column is None else None
    if plain is not None and all(kind_of_name(file.name, frozenset()) is None for file in plain.files):
        return _of_folders(source, plain, options)
    if plain is None or kind_of_name(plain.files[0].name, frozenset()) is not Kind.TAR:
        if column is None:
            raise SourceError(f"{source}: which column has the class? name it with --class-column")
        by_column = _by_column(source, column, images_only)
        if by_column is not None:
            return _made(by_column, lambda row: _text(row.columns.get(column)), options)
    in_tars = replace(images_only, text_column=column or CLASS_SUFFIX)
    dataset = open_dataset([source], in_tars)
    ignored = {} if clip_benchmark is None else clip_benchmark.other_files(dataset)
    made = _made(dataset, lambda row: _text(row.text), options)
    made.reading = Reading.of(dataset, ignored)
    return made


def _by_column(source: str, column: str, options: SourceOptions) -> Dataset | None:
    """Returns a table with its column of classes, or `None` for tars."""
    opened = open_dataset([source], replace(options, columns=(column,)))
    is_tar = any(kind_of_name(file.name, frozenset()) is Kind.TAR for file in opened.files)
    return None if is_tar else opened


def _of_folders(source: str, dataset: Dataset, options: SetOptions) -> ClassSet:
    made = _made(dataset, _folder_of, options)
    made.are_folders = True
    reading = Reading()  # the real one notes the same when the images are read
    rows, folders = 0, set()
    for row in reading.rows(dataset):
        rows += 1
        folders.add(_folder_of(row))
    named = sorted(folder for folder in folders if folder is not None)
    if not named:
        raise ValueError(f"{source} has no folders of classes; give one with a folder for each class")
    made.total = rows
    names = options.names
    if names is None:
        return made
    if names.numbers is None:
        if len(names.classes) != len(named):
            raise ValueError(
                f"{len(names.classes)} names for {len(named)} folders; give one for each, in the order of "
                "the folders' names, or name the folders in the file of classes"
            )
        made.order = {folder: number for number, folder in enumerate(named)}
    elif not any(folder in names.numbers for folder in named):
        raise ValueError(
            f"none of the folders, such as {named[0]!r}, is in the file of classes; if that has the names of "
            "several datasets, choose one with --dataset-name"
        )
    return made


def _made(dataset: Dataset, class_of: _ClassOf, options: SetOptions) -> ClassSet:
    return ClassSet(
        dataset, class_of, options.names, options.prompts or Prompts(), reading=Reading.of(dataset)
    )


def _folder_of(row: Row) -> str | None:
    folder, slash, _ = row.key.partition("/")
    return folder if slash else None


def _text(value: object) -> str | None:
    text = "" if value is None else str(value).strip()
    return text or None


def is_folder_of_classes(source: str, dataset: Dataset) -> bool:
    """Returns whether a dataset looks like image files in a folder for each class."""
    if not Path(source).is_dir() or dataset.has_texts:
        return False
    return all(kind_of_name(file.name, frozenset()) is None for file in dataset.files)
