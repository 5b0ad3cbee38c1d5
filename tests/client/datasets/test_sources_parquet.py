"""Parquet: all types that can hold images and texts, one schema for all files, and bounded memory."""

from __future__ import annotations

import datetime
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from alignserve.datasets.source import SourceError
from pyarrow import parquet

from tests.client.datasets.reading import broken_rows, opened, read, reasons, rows, texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.parquet"


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    try:
        parquet.write_table(pa.table(columns), path, **options)
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this pyarrow cannot write the type: {error}")
    return path


NESTED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    "type_",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(5), pa.dictionary(pa.int8(), pa.binary())],
)
def test_images_are_bytes_of_any_type(path: Path, type_: pa.DataType) -> None:
    """A null means that there is none."""
    write(path, {"jpg": pa.array([b"image", None], type_), "text": ["a", "b"]})

    assert [row.image for row in read(path)] == [b"image", None]


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_texts_are_strings_of_any_type(path: Path, type_: pa.DataType) -> None:
    """Exactly as they are written; text without its type is bytes."""
    values = ["007", "NA", "null", "", "a\r\nb", "é", None]
    encoded = [value if value is None else value.encode() for value in values]
    image = pa.array([b"image"] * 7)
    write(path, {"text": pa.array(encoded if type_ == pa.binary() else values, type_), "image": image})

    assert texts(read(path)) == values


def test_structs_of_nulls_take_the_type_of_another_file(tmp_path: Path) -> None:
    """Writers that infer types write `struct<a: null>` where a file happens to have only nulls."""
    parts = {
        "1": [{"a": None, "n": [1]}],
        "2": [{"n": None, "a": "x"}],
        "3": [{"more": 2.5}],
        "4": [None],
    }
    for name, values in parts.items():
        parquet.write_table(pa.table({"text": ["t"], "s": values}), tmp_path / f"{name}.parquet")

    dataset = opened(tmp_path, columns=("s",))

    kept = pa.array([row.columns["s"] for row in rows(dataset)], dataset.schema.field("s").type)
    assert kept.to_pylist() == [
        {"a": None, "n": [1], "more": None},
        {"a": "x", "n": None, "more": None},
        {"a": None, "n": None, "more": 2.5},
        None,
    ]


def test_images_as_hugging_face_datasets_writes_them(path: Path, tmp_path: Path) -> None:
    """Bytes, or a path next to the file, or nothing."""
    (tmp_path / "a.jpg").write_bytes(b"from a file")
    values = [
        {"bytes": b"image", "path": "b.jpg"},
        {"bytes": None, "path": "a.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": "a.jpg"},
    ]
    write(path, {"image": pa.array(values, NESTED), "text": ["x"] * 5})

    found = read(path)

    assert [row.image for row in found] == [b"image", b"from a file", None, None, None]
    assert reasons(found) == [None, None, None, None, "IMAGE_EMPTY"]


@pytest.mark.parametrize("type_", [NESTED, pa.null(), pa.binary()])
def test_columns_of_nulls_are_read(path: Path, type_: pa.DataType) -> None:
    """A struct of nulls, too; without a text such a row fails."""
    write(path, {"image": pa.nulls(3, type_), "text": ["a", None, "c"]})

    found = read(path)

    assert texts(found) == ["a", None, "c"]
    assert reasons(found) == [None, "ROW_EMPTY", None]


def test_row_groups_without_rows_are_passed_over(path: Path) -> None:
    """First, last and in the middle."""
    schema = pa.schema([("text", pa.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        for values in ([], ["a", "b"], [], ["c"], []):
            writer.write_table(pa.table({"text": pa.array(values, pa.string())}))

    found = read(path)

    assert texts(found) == ["a", "b", "c"]
    assert [row.key for row in found] == ["data.parquet:0", "data.parquet:1", "data.parquet:2"]
    assert [[row.text for row, _ in opened(path).files[0].rows(start)] for start in (1, 2, 3)] == [
        ["b", "c"],
        ["c"],
        [],
    ]


def test_columns_in_another_order_and_of_other_types_make_one_schema(tmp_path: Path) -> None:
    """The wider integer, the plain string; a column that a file lacks is null there."""
    write(tmp_path / "1.parquet", {"text": ["a"], "n": pa.array([1], pa.int8()), "s": pa.array(["x"])})
    write(
        tmp_path / "2.parquet",
        {
            "s": pa.array(["y"]).dictionary_encode(),
            "n": pa.array([1 << 40], pa.int64()),
            "extra": pa.array([[1.5]]),
            "text": ["b"],
        },
    )
    write(tmp_path / "3.parquet", {"text": ["c"], "s": pa.nulls(1)})

    dataset = opened(tmp_path, columns=["n", "s", "extra"])

    assert dataset.schema == pa.schema(
        [("n", pa.int64()), ("s", pa.string()), ("extra", pa.list_(pa.float64()))]
    )
    assert [row.columns for row in rows(dataset)] == [
        {"n": 1, "s": "x", "extra": None},
        {"n": 1 << 40, "s": "y", "extra": [1.5]},
        {"n": None, "s": None, "extra": None},
    ]


def test_types_without_a_common_one_are_refused(tmp_path: Path) -> None:
    """Before any work, with the files and the types; without the column the files are one dataset."""
    write(tmp_path / "1.parquet", {"text": ["a"], "n": [1]})
    write(tmp_path / "2.parquet", {"text": ["b"], "n": ["x"]})

    with pytest.raises(SourceError, match=r"'n' is int64 in 1.parquet and string in 2.parquet"):
        opened(tmp_path, columns=["n"])
    assert texts(read(tmp_path)) == ["a", "b"]


def test_a_file_that_lacks_the_images_is_refused(tmp_path: Path) -> None:
    """Its rows would be texts only, and their images would be lost."""
    write(tmp_path / "1.parquet", {"text": ["a"], "image": [b"image"]})
    write(tmp_path / "2.parquet", {"text": ["b"]})

    with pytest.raises(
        SourceError, match=r"1.parquet has images in the column 'image', but 2.parquet has none"
    ):
        opened(tmp_path)
    assert texts(read(tmp_path, image_column="")) == ["a", "b"]


def test_kept_columns_survive_a_round_trip(path: Path) -> None:
    """Nested ones, times in nanoseconds, decimals and dictionaries, as pyarrow takes them for the schema."""
    columns = {
        "list": pa.array([[{"a": 1, "b": ["x"]}], None]),
        "struct": pa.array(
            [{"a": {"b": None}}, None], pa.struct([("a", pa.struct([("b", pa.large_string())]))])
        ),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        "time": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns", "UTC")),
        "date": pa.array([datetime.date(2020, 1, 2), None]),
        "fixed": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "bytes": pa.array([b"\xff", None], pa.large_binary()),
        "dictionary": pa.array(["x", None]).dictionary_encode(),
        "bool": pa.array([True, None]),
    }
    write(path, {"text": ["a", "b"], **columns})

    dataset = opened(path, columns=["*"])

    kept = pa.Table.from_pylist([dict(row.columns) for row in rows(dataset)], dataset.schema)
    for name, values in columns.items():
        assert kept.column(name).combine_chunks().equals(values.cast(kept.schema.field(name).type)), name


def test_a_text_that_is_not_utf_8_fails_alone(path: Path) -> None:
    """Parquet does not check its strings."""
    bad = pa.StringArray.from_buffers(3, *pa.array([b"a", b"\xff", b"c"]).buffers()[1:])
    write(path, {"text": bad, "other": bad})

    found = read(path)

    assert texts(found) == ["a", None, "c"]
    assert reasons(found) == [None, "COLUMN_INVALID", None]


def test_images_can_be_paths(path: Path, tmp_path: Path) -> None:
    """They start at the folder of the file."""
    (tmp_path / "a.jpg").write_bytes(b"image")
    write(path, {"file_name": ["a.jpg", "b.jpg", None], "text": ["x"] * 3})

    found = read(path)

    assert [row.image for row in found] == [b"image", None, None]
    assert reasons(found) == [None, "IMAGE_UNREADABLE", None]


def test_columns_with_dots_in_their_names_are_columns(path: Path) -> None:
    """Not only parts of structs."""
    write(path, {"a.text": ["x"], "a": pa.array([{"text": "y"}])})

    assert texts(read(path, text_column="a.text")) == ["x"]


def test_columns_of_other_types_are_not_taken(path: Path) -> None:
    """A well-known name with another type is passed over, and asking for it is refused."""
    write(path, {"image": [[1, 2]], "text": [7], "caption": ["a"]})

    assert texts(read(path)) == ["a"]
    for part in ("image_column", "text_column"):
        name = part.removesuffix("_column")
        with pytest.raises(SourceError, match=f"cannot be in the column '{name}'"):
            opened(path, **{part: name})


def test_columns_in_upper_case_are_well_known_too(path: Path) -> None:
    """LAION's files have TEXT."""
    write(path, {"TEXT": ["a"], "URL": ["https://example.org"]})

    assert texts(read(path)) == ["a"]


def test_a_file_that_is_cut_off_is_named_and_others_go_on(tmp_path: Path) -> None:
    """Without its end, Parquet has no readable rows."""
    for number in (1, 2, 3):
        write(tmp_path / f"{number}.parquet", {"text": [f"{number}"] * 100})
    content = (tmp_path / "2.parquet").read_bytes()
    (tmp_path / "2.parquet").write_bytes(content[:-10])

    dataset = opened(tmp_path)

    assert len(dataset.files) == 3
    found, message = broken_rows(dataset.files[1])
    assert (found, "2.parquet" in message) == ([], True)
    assert texts([row for row, _ in dataset.files[2].rows()]) == ["3"] * 100


def test_a_damaged_page_ends_a_file_after_its_whole_rows(path: Path) -> None:
    """The row groups before it count."""
    values = [f"{number} " * 50 for number in range(300)]
    write(path, {"text": values}, row_group_size=100, compression="none", use_dictionary=False)
    metadata = parquet.ParquetFile(path).metadata
    start = metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 50] = bytes(50)
    path.write_bytes(content)

    found, message = broken_rows(opened(path).files[0])

    assert texts(found) == values[:100]
    assert "row 100" in message


def test_only_files_that_can_be_read_decide_the_schema(tmp_path: Path) -> None:
    """If none can, the dataset has no columns, and each file is named."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1")

    dataset = opened(tmp_path)

    assert "a.parquet" in broken_rows(dataset.files[0])[1]
    assert not dataset.has_images


def test_one_huge_row_group_is_read_in_parts(path: Path) -> None:
    """A few batches of 16 MiB are in memory at a time, not the 100 MiB of the row group."""
    image = bytes(1 << 20)
    columns = {"image": pa.array([image] * 100)}
    write(path, columns, compression="none", use_dictionary=False, write_batch_size=1)
    before = pa.total_allocated_bytes()
    tracemalloc.start()

    peak = 0
    for row, _ in opened(path).files[0].rows():
        assert row.image is not None
        in_python, _ = tracemalloc.get_traced_memory()
        peak = max(peak, in_python + pa.total_allocated_bytes() - before)

    tracemalloc.stop()
    assert peak < 80 << 20


def test_rows_that_img2dataset_could_not_download_fail_with_its_message(path: Path) -> None:
    """Also if they have a caption, which would otherwise be a row without its image."""
    write(
        path,
        {
            "key": ["0", "1", "2"],
            "jpg": [b"image", None, None],
            "caption": ["a", "b", "c"],
            "status": ["success", "failed_to_download", "failed_to_resize"],
            "error_message": [None, "HTTP Error 404", None],
        },
    )

    found = read(path)

    assert reasons(found) == [None, "NOT_DOWNLOADED", "NOT_DOWNLOADED"]
    assert found[1].failure is not None
    assert found[1].failure.message == "img2dataset: failed_to_download: HTTP Error 404"
    assert texts(read(path, image_column="")) == ["a", "b", "c"]


def test_nested_times_in_nanoseconds_are_kept(tmp_path: Path) -> None:
    """Python's own times are coarser; their rows do not fail for that."""
    types = [
        pa.list_(pa.timestamp("ns", "UTC")),
        pa.list_(pa.duration("ns"), 1),
        pa.large_list(pa.time64("ns")),
    ]
    columns = {str(number): pa.array([[1], None], type_) for number, type_ in enumerate(types)}
    columns["struct"] = pa.array([{"t": 2**60 + 1}, None], pa.struct([("t", pa.timestamp("ns"))]))
    columns["map"] = pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.timestamp("ns")))
    parquet.write_table(pa.table({"text": ["a", "b"], **columns}), tmp_path / "a.parquet")

    dataset = opened(tmp_path / "a.parquet", columns=["*"])

    kept = [row.columns for row in rows(dataset)]
    for name, column in columns.items():
        assert pa.array([row[name] for row in kept], column.type).equals(column)
