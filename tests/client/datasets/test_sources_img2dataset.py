"""The output of img2dataset as it is: its rows once, its failures counted, its unfinished shards named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from alignserve.datasets.source import SourceError
from pyarrow import parquet

from tests.client.datasets.reading import opened, reasons, rows, tar_of, texts

KEYS = ("000000000", "000000001")


def metadata(key: str) -> dict[str, Any]:
    return {"url": f"https://example.org/{key}", "caption": f"caption {key}", "key": key, "width": 256}


def write_statistics(folder: Path, shard: str, count: int, successes: int) -> None:
    counts = {
        "count": count,
        "successes": successes,
        "failed_to_download": count - successes,
        "failed_to_resize": 0,
    }
    (folder / f"{shard}_stats.json").write_text(json.dumps({**counts, "status_dict": {"success": successes}}))


def write_metadata(folder: Path, shard: str) -> None:
    parquet.write_table(pa.Table.from_pylist([metadata(key) for key in KEYS]), folder / f"{shard}.parquet")


def write_files(folder: Path, shard: str) -> None:
    (folder / shard).mkdir()
    for key in KEYS:
        (folder / shard / f"{key}.jpg").write_bytes(key.encode())
        (folder / shard / f"{key}.txt").write_text(f"caption {key}")
        (folder / shard / f"{key}.json").write_text(json.dumps(metadata(key), indent=4))
    write_metadata(folder, shard)


def write_webdataset(folder: Path, shard: str) -> None:
    members = [
        file
        for key in KEYS
        for file in (
            (f"{key}.jpg", key.encode()),
            (f"{key}.json", json.dumps(metadata(key), indent=4).encode()),
            (f"{key}.txt", f"caption {key}".encode()),
        )
    ]
    (folder / f"{shard}.tar").write_bytes(tar_of(members))
    write_metadata(folder, shard)


def write_parquet(folder: Path, shard: str) -> None:
    done = [
        {
            **metadata(key),
            "jpg": key.encode(),
            "txt": f"caption {key}",
            "status": "success",
            "error_message": None,
        }
        for key in KEYS
    ]
    lost = {**metadata("2"), "jpg": None, "txt": None, "status": "failed_to_download", "error_message": "404"}
    parquet.write_table(pa.Table.from_pylist([*done, lost]), folder / f"{shard}.parquet")


@pytest.mark.parametrize("write", [write_files, write_webdataset])
def test_files_and_tars_have_their_rows_once(tmp_path: Path, write: Any) -> None:
    """The metadata next to them are not rows; rows that were not downloaded are counted."""
    for shard in ("00000", "00001"):
        write(tmp_path, shard)
        write_statistics(tmp_path, shard, 5, 2)

    dataset = opened(tmp_path, columns=["url", "width"])

    found = rows(dataset)
    assert texts(found) == [f"caption {key}" for key in KEYS] * 2
    assert [row.image for row in found] == [key.encode() for key in KEYS] * 2
    assert found[1].columns == {"url": "https://example.org/000000001", "width": "256"}
    assert dataset.skipped == {
        "not downloaded by img2dataset": 6,
        "metadata of img2dataset": 2,
        "statistics of img2dataset": 2,
    }
    assert not dataset.problems


def test_in_parquet_rows_that_were_not_downloaded_fail(tmp_path: Path) -> None:
    """They are rows there, so they are not counted twice, and the statistics are not data."""
    write_parquet(tmp_path, "00000")
    write_statistics(tmp_path, "00000", 3, 2)

    dataset = opened(tmp_path)

    found = rows(dataset)
    assert reasons(found) == [None, None, "NOT_DOWNLOADED"]
    assert [row.key for row in found] == [f"00000.parquet:{number}" for number in range(3)]
    assert dataset.skipped == {"statistics of img2dataset": 1}


@pytest.mark.parametrize("write", [write_files, write_webdataset, write_parquet])
def test_a_shard_without_statistics_is_a_problem(tmp_path: Path, write: Any) -> None:
    """img2dataset writes them last, so it was stopped; what there is of the shard is read."""
    for shard in ("00000", "00001"):
        write(tmp_path, shard)
    write_statistics(tmp_path, "00000", 2, 2)

    dataset = opened(tmp_path)

    assert [problem.split(":")[0] for problem in dataset.problems] == [f"{tmp_path}/00001"]
    assert len({row.key for row in rows(dataset)}) == len(rows(dataset)) >= 4


def test_unreadable_statistics_count_nothing(tmp_path: Path) -> None:
    """They are not needed for the rows."""
    write_webdataset(tmp_path, "00000")
    (tmp_path / "00000_stats.json").write_text('{"count": ')

    assert len(rows(opened(tmp_path))) == 2


def test_tfrecord_is_a_problem(tmp_path: Path) -> None:
    """Its metadata are not taken for rows without images."""
    write_webdataset(tmp_path, "00000")
    (tmp_path / "00001.tfrecord").write_bytes(b"x")
    write_metadata(tmp_path, "00001")
    for shard in ("00000", "00001"):
        write_statistics(tmp_path, shard, 2, 2)

    dataset = opened(tmp_path)

    assert len(rows(dataset)) == 2
    assert len(dataset.problems) == 1
    assert "TFRecord" in dataset.problems[0]


@pytest.mark.parametrize("write", [write_files, write_webdataset])
@pytest.mark.parametrize("source", ["", "*"])
def test_metadata_are_recognized_without_statistics(tmp_path: Path, write: Any, source: str) -> None:
    """Datasets are often passed on without them; the rows are not read a second time."""
    for shard in ("00000", "00001"):
        write(tmp_path, shard)

    dataset = opened(tmp_path / source)

    assert texts(rows(dataset)) == [f"caption {key}" for key in KEYS] * 2
    assert dataset.skipped["metadata of img2dataset"] == 2
    assert not dataset.problems


@pytest.mark.parametrize("write", [write_files, write_webdataset])
def test_a_pattern_leaves_out_what_is_next_to_the_shards(tmp_path: Path, write: Any) -> None:
    """Metadata and statistics are not rows."""
    write(tmp_path, "00000")
    write_statistics(tmp_path, "00000", 3, 2)

    dataset = opened(tmp_path / "*")

    assert len(rows(dataset)) == 2
    assert dataset.skipped["not downloaded by img2dataset"] == 1


def test_parquet_with_images_is_not_metadata(tmp_path: Path) -> None:
    """Whatever its name: it is data next to a folder of images."""
    write_parquet(tmp_path, "2023")
    (tmp_path / "2023").mkdir()
    (tmp_path / "2023/preview.jpg").write_bytes(b"image")

    with pytest.raises(SourceError, match=r"1 of images .*, 1 of parquet"):
        opened(tmp_path)


def test_metadata_can_be_asked_for(tmp_path: Path) -> None:
    """By their kind; they have the texts of all rows."""
    write_webdataset(tmp_path, "00000")

    assert texts(rows(opened(tmp_path, kind="parquet"))) == [f"caption {key}" for key in KEYS]
