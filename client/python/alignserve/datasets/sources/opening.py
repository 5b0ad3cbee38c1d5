"""Opens a dataset: finds its files, chooses their columns, and agrees on one schema, before any row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from alignserve.datasets.source import Dataset, SourceError, SourceFile
from alignserve.datasets.sources import delimited, json_lines, parquet, tars
from alignserve.datasets.sources.columns import Chosen, choose, late_names, listed
from alignserve.datasets.sources.files import FileError
from alignserve.datasets.sources.finding import Found, find
from alignserve.datasets.sources.image_files import ImageBlock, block_name
from alignserve.datasets.sources.key_check import check_keys
from alignserve.datasets.sources.keys import key_of_name
from alignserve.datasets.sources.kinds import Kind
from alignserve.datasets.sources.options import ALL_COLUMNS, SourceOptions
from alignserve.datasets.sources.rows import IMAGE, TEXT, Limits, RowBuilder
from alignserve.datasets.sources.types import common_type, has_paths, is_image_type, is_text_type, kept_type
from alignserve.datasets.sources.unreadable import UnreadableFile

_Make = Callable[[RowBuilder], SourceFile]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file whose columns are chosen.

    Attributes:
        name: Unique in the dataset.
        kind: Of the file.
        names: Of all its columns, as far as they are known.
        chosen: The columns to read.
        types: Of the columns that can be kept; `None` for files that keep any name, as text.
        make: Makes the source file.
        image_root: The folder from which relative paths start.
        has_image_files: Whether images are files of their own.
    """

    name: str
    kind: Kind
    names: Sequence[str]
    chosen: Chosen
    types: dict[str, pa.DataType] | None
    make: _Make
    image_root: str = ""
    has_image_files: bool = False


def open_dataset(paths: Iterable[str | Path], options: SourceOptions | None = None) -> Dataset:
    """Opens sources as one dataset.

    A source is a folder, a file, or a pattern of either with `*`, `?`, `[…]` or `**`. Files are images,
    Parquet, CSV or TSV, JSON Lines or tars of samples; `client/docs/datasets.md` describes which of their
    rows are read, skipped or failed. The same sources give the same files, rows and keys in the same order.

    Every table and tar is opened once, to learn its columns; no row is read, unless there is a column of
    keys, which have to be unique.

    Args:
        paths: The sources.
        options: What to read of them; by default, columns with well-known names.

    Raises:
        SourceError: A source is missing, nothing in it can be read, a column is missing, files of one kind
            differ in what they have, the types of a kept column have nothing in common, or a key comes twice.
    """
    options = options or SourceOptions()
    if options.image_column == "" and options.text_column == "":
        raise SourceError("neither images nor texts are to be read")
    found = find(list(paths), options)
    if not found.files:
        left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(found.skipped.items()))
        raise SourceError("; ".join(("nothing to read was found", *found.problems, left_out)).rstrip("; "))
    opened = _with_parts_of_all_tars(list(_opened(found, options)), options)
    readable = [file for file in opened if isinstance(file, _Opened)]
    _check_alike(readable)
    schema = _schema(readable, options)
    files = [_made(file, schema, options) if isinstance(file, _Opened) else file for file in opened]
    if options.key_column is not None:
        if all(file.chosen.key is None for file in readable):
            raise SourceError(
                f"keys should be in the column '{options.key_column}', but no source is a table; leave out "
                "key_column"
            )
        check_keys(files)
    return Dataset(
        files,
        schema,
        found.skipped,
        found.problems,
        any(file.chosen.image is not None for file in readable),
        any(file.chosen.text is not None for file in readable),
        any(file.has_image_files for file in readable),
    )


def _opened(found: Found, options: SourceOptions) -> Iterator[_Opened | UnreadableFile]:
    openers = {
        Kind.PARQUET: _open_parquet,
        Kind.CSV: _open_csv,
        Kind.JSON_LINES: _open_json_lines,
        Kind.TAR: _open_tar,
    }
    for kind, name in found.files:
        if kind is Kind.IMAGES:
            yield _open_images(found, name, options)
            continue
        path = Path(found.base, name)
        try:
            yield openers[kind](path, key_of_name(name), options)
        except FileError as error:
            yield UnreadableFile(key_of_name(name), path, error.message)


def _with_parts_of_all_tars(
    files: Sequence[_Opened | UnreadableFile], options: SourceOptions
) -> list[_Opened | UnreadableFile]:
    """Has images and texts read of all tars if one has some: only their first samples were looked at.

    Raises:
        SourceError: None has what was asked for.
    """
    tars_ = [file for file in files if isinstance(file, _Opened) and file.kind is Kind.TAR]
    image = next((file.chosen.image for file in tars_ if file.chosen.image is not None), None)
    text = next((file.chosen.text for file in tars_ if file.chosen.text is not None), None)
    names = list(dict.fromkeys(name for file in tars_ for name in file.names))
    for part, asked, found in (("image", options.image_column, image), ("text", options.text_column, text)):
        if asked and names and found is None:
            raise SourceError(
                f"{tars_[0].name}: {part}s should be in the members '{asked}'; there are {listed(names)}"
            )
    return [
        replace(file, chosen=replace(file.chosen, image=image, text=text))
        if isinstance(file, _Opened) and file.kind is Kind.TAR
        else file
        for file in files
    ]


def _open_images(found: Found, paths: str, options: SourceOptions) -> _Opened:
    chosen = Chosen(
        None if options.image_column == "" else IMAGE,
        TEXT if found.has_texts and options.text_column != "" else None,
        None,
        (),
    )
    name = block_name(paths)
    make = partial(
        ImageBlock,
        name,
        found.base,
        paths,
        text_suffix=f".{options.text_column or 'txt'}",
        max_metadata_bytes=options.max_row_bytes,
    )
    return _Opened(
        name,
        Kind.IMAGES,
        (),
        chosen,
        None,
        lambda builder: make(builder=builder),
        has_image_files=chosen.image is not None,
    )


def _open_parquet(path: Path, name: str, options: SourceOptions) -> _Opened:
    schema = parquet.schema_of(path)
    types = dict(zip(schema.names, schema.types, strict=True))
    chosen = choose(
        schema.names,
        options,
        place=str(path),
        is_image=lambda column: is_image_type(types[column]),
        is_text=lambda column: is_text_type(types[column]),
    )
    kept = {column: kept_type(types[column]) for column in chosen.kept}
    return _Opened(
        name,
        Kind.PARQUET,
        schema.names,
        chosen,
        kept,
        partial(parquet.ParquetFile, name, path),
        _root(path, options),
        chosen.image is not None and has_paths(types[chosen.image]),
    )


def _open_csv(path: Path, name: str, options: SourceOptions) -> _Opened:
    if path.stat().st_size:
        layout = delimited.layout_of(path, options.delimiter, options.max_row_bytes)
        chosen = choose(layout.names, options, place=str(path))
    else:
        layout, chosen = delimited.Layout((), b","), Chosen(None, None, None, ())
    make = partial(delimited.DelimitedFile, name, path, layout=layout, max_row_bytes=options.max_row_bytes)
    types = dict.fromkeys(chosen.kept, pa.string())
    return _Opened(
        name,
        Kind.CSV,
        layout.names,
        chosen,
        types,
        lambda builder: make(builder=builder),
        _root(path, options),
        chosen.image is not None,
    )


def _open_json_lines(path: Path, name: str, options: SourceOptions) -> _Opened:
    asked = (options.image_column, options.text_column, options.key_column)
    names = json_lines.names_in(path, options.max_row_bytes, [name for name in asked if name])
    is_empty = not path.stat().st_size
    if not names and not is_empty:
        raise SourceError(
            f"{path}: none of its first {json_lines.PEEKED_LINES} lines is a JSON object with names"
        )
    chosen = Chosen(None, None, None, ()) if is_empty else choose(names, options, place=str(path))
    make = partial(
        json_lines.JsonLinesFile,
        name,
        path,
        max_line_bytes=options.max_row_bytes,
        late_names=late_names(chosen, options),
    )
    return _Opened(
        name,
        Kind.JSON_LINES,
        names,
        chosen,
        None,
        lambda builder: make(builder=builder),
        _root(path, options),
        chosen.image is not None,
    )


def _open_tar(path: Path, name: str, options: SourceOptions) -> _Opened:
    samples = tars.samples_of(options)
    names, chosen = tars.chosen_in(path, samples, options)

    def make(builder: RowBuilder) -> SourceFile:
        parts = replace(chosen, image=builder.image, text=builder.text)  # of all tars
        late = tars.late_suffixes(parts, samples, options)
        return tars.TarFile(name, path, samples, builder, options.max_row_bytes, late)

    return _Opened(name, Kind.TAR, names, chosen, None, make)


def _root(path: Path, options: SourceOptions) -> str:
    return str(path.parent if options.image_root is None else options.image_root.absolute())


def _check_alike(files: Sequence[_Opened]) -> None:
    """Refuses tables of one kind of which some have images, or texts, and others have none."""
    first: dict[Kind, _Opened] = {}
    for file in files:
        if file.kind in (Kind.IMAGES, Kind.TAR) or (file.chosen.image is None and file.chosen.text is None):
            continue  # they need not have both, and an empty file of JSON Lines has no columns
        other = first.setdefault(file.kind, file)
        for part in ("image", "text"):
            if (getattr(file.chosen, part) is None) != (getattr(other.chosen, part) is None):
                has, lacks = (file, other) if getattr(other.chosen, part) is None else (other, file)
                column = getattr(has.chosen, part)
                raise SourceError(
                    f"{has.name} has {part}s in the column '{column}', but {lacks.name} has none; name "
                    f"the column with {part}_column, or leave one of the files out"
                )


def _schema(files: Sequence[_Opened], options: SourceOptions) -> pa.Schema:
    """Returns the schema of the kept columns: as texts, except those of Parquet."""
    is_open = any(file.types is None for file in files)
    if tuple(options.columns) == (ALL_COLUMNS,):
        if is_open:
            raise SourceError("only Parquet and CSV list their columns; name those to keep of other files")
        names = list(dict.fromkeys(name for file in files for name in file.types or ()))
    else:
        names = list(dict.fromkeys(options.columns))
    fields = []
    for name in names:
        seen = [
            (file.name, pa.string() if file.types is None else file.types[name])
            for file in files
            if file.types is None or name in file.types
        ]
        if not seen:
            raise SourceError(f"no file has a column '{name}' to keep; {_columns_of(files)}")
        fields.append(pa.field(name, common_type(name, seen)))
    return pa.schema(fields)


def _columns_of(files: Sequence[_Opened]) -> str:
    return f"the columns of {files[0].name} are {listed(files[0].names)}" if files else "none can be read"


def _made(file: _Opened, schema: pa.Schema, options: SourceOptions) -> SourceFile:
    limits = Limits(options.max_image_bytes, options.max_text_bytes)
    chosen = replace(file.chosen, kept=tuple(schema.names))
    parts = (chosen.image, chosen.text, chosen.key, chosen.kept)
    return file.make(RowBuilder(*parts, file.image_root, limits, options.reads_images))
