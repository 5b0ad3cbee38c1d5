"""The command `alignserve index`: a store has the rows of its sources, and follows their changes."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve.cli import main
from alignserve.search import Store, open_store
from alignserve.testing import FakeServer

from tests.client.search.rows import NEEDS_LANCEDB, vector

pytestmark = NEEDS_LANCEDB

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Indexes into one store; returns the exit code, the account and the complaints."""

    def index(*arguments: object) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = main(
            ["--server", server.target, "index", *map(str, arguments), "--to", str(tmp_path / "s"), "--json"]
        )
        captured = capsys.readouterr()
        return code, json.loads(captured.out or "{}"), captured.err

    return index


@pytest.fixture
def photos(tmp_path: Path, photo: Path) -> Path:
    """A folder of five photos, all different."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(photo.read_bytes() + bytes([number]))
    (folder / "sub/0.JPG").write_bytes(photo.read_bytes() + b"sub")
    return folder


def rows(tmp_path: Path) -> dict[str, dict[str, Any]]:
    store = open_store(tmp_path / "s")
    return {hit.key: dict(hit.columns) for hit in store.search(np.ones(8, np.float32), 1000)}


def embedded(server: FakeServer) -> int:
    return sum(call.method == "StreamInfer" for call in server.received)


def test_a_folder_of_photos_becomes_searchable(run: Run, photos: Path, tmp_path: Path) -> None:
    """Rows have the path, with which results can show the photo; the exit code is 0."""
    code, account, _ = run(photos)

    assert code == 0
    assert account == {
        "rows": 5,
        "added": 5,
        "changed": 0,
        "unchanged": 0,
        "failed": {},
        "removed": 0,
        "problems": [],
        "store_rows": 5,
    }
    found = rows(tmp_path)
    assert set(found) == {"0.jpg", "1.jpg", "2.jpg", "3.jpg", "sub/0.JPG"}
    assert found["sub/0.JPG"] == {"path": str(photos / "sub/0.JPG")}


def test_a_photo_is_found_by_itself(run: Run, photos: Path, server: FakeServer, tmp_path: Path) -> None:
    """The vectors in the store are the server's."""
    from alignserve import Client

    run(photos)
    with Client(server.target) as client:
        query = client.embed_image([photos / "2.jpg"])[0]

    (hit,) = open_store(tmp_path / "s").search(query, 1)

    assert hit.key == "2.jpg"
    assert hit.similarity == pytest.approx(1, abs=1e-5)


def test_indexing_again_embeds_nothing(run: Run, photos: Path, server: FakeServer) -> None:
    """Nothing is doubled, either."""
    run(photos)
    before = embedded(server)

    code, account, _ = run(photos)

    assert (code, account["unchanged"], account["added"], account["store_rows"]) == (0, 5, 0, 5)
    assert embedded(server) == before


def test_changed_new_and_deleted_photos_are_followed(run: Run, photos: Path, tmp_path: Path) -> None:
    """A changed file keeps its key, and gets a new vector."""
    run(photos)
    before = {one.key: one.embedding.tolist() for one in open_store(tmp_path / "s").entries()}
    (photos / "0.jpg").write_bytes((photos / "0.jpg").read_bytes() + b"changed")
    (photos / "1.jpg").unlink()
    shutil.copy(photos / "2.jpg", photos / "new.jpg")

    code, account, _ = run(photos)

    assert code == 0
    assert (account["added"], account["changed"], account["unchanged"], account["removed"]) == (1, 1, 3, 1)
    after = {one.key: one.embedding.tolist() for one in open_store(tmp_path / "s").entries()}
    assert set(after) == {"0.jpg", "2.jpg", "3.jpg", "new.jpg", "sub/0.JPG"}
    assert after["0.jpg"] != before["0.jpg"]
    assert after["2.jpg"] == before["2.jpg"]


def test_a_file_that_was_only_touched_is_not_embedded(run: Run, photos: Path, server: FakeServer) -> None:
    """Its content is compared by a digest."""
    run(photos)
    before = embedded(server)
    os.utime(photos / "0.jpg", (1, 1))

    _, account, _ = run(photos)

    assert (account["unchanged"], account["changed"]) == (5, 0)
    assert embedded(server) == before


def test_missing_photos_can_be_kept(run: Run, photos: Path) -> None:
    """With --keep-missing a store only grows."""
    run(photos)
    (photos / "0.jpg").unlink()

    _, account, _ = run(photos, "--keep-missing")

    assert (account["removed"], account["store_rows"]) == (0, 5)


def test_nothing_is_removed_if_a_folder_cannot_be_read(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without permission is named and spoils the exit code; its rows were not deleted."""
    run(photos)
    shutil.rmtree(photos / "sub")
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (photos / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)

    code, account, complaints = run(photos)

    assert (code, account["removed"], account["store_rows"]) == (1, 0, 5)
    assert "locked" in complaints
    assert "nothing was removed" in complaints


def test_photos_that_fail_are_named_and_counted(photos: Path, tmp_path: Path) -> None:
    """The others are indexed; the exit code is 1; --failures has a line for each."""
    (photos / "bad.jpg").write_bytes(b"bad")
    with FakeServer(embedding_dimension=8, checks_images=True) as strict:
        code = main(
            [
                *("--server", strict.target, "index", str(photos), "--to", str(tmp_path / "s")),
                *("--failures", str(tmp_path / "failures.jsonl")),
            ]
        )

    assert code == 1
    (line,) = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "bad.jpg"
    assert set(rows(tmp_path)) == {"0.jpg", "1.jpg", "2.jpg", "3.jpg", "sub/0.JPG"}


def test_a_photo_that_is_broken_now_is_no_longer_found(photos: Path, tmp_path: Path) -> None:
    """Its old vector would be wrong."""
    with FakeServer(embedding_dimension=8, checks_images=True) as strict:
        arguments = ["--server", strict.target, "index", str(photos), "--to", str(tmp_path / "s")]
        assert main(arguments) == 0
        (photos / "0.jpg").write_bytes(b"broken")

        assert main(arguments) == 1

    assert "0.jpg" not in rows(tmp_path)


def test_sources_of_one_store_do_not_remove_each_others_rows(run: Run, photos: Path, tmp_path: Path) -> None:
    """Keys that two sources share fail, until one of them has a prefix."""
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    run(photos)

    code, account, complaints = run(other)
    again, prefixed, _ = run(other, "--key-prefix", "other/")

    assert (code, account["failed"]) == (1, {"KEY_TAKEN": 5})
    assert "--key-prefix" in complaints
    assert (again, prefixed["added"], prefixed["store_rows"]) == (0, 5, 10)
    assert run(photos)[1]["unchanged"] == 5


def test_single_photos_are_added_to_their_folder(run: Run, photos: Path) -> None:
    """The others in the folder are not missing, only not named."""
    run(photos / "0.jpg", photos / "1.jpg")

    code, account, _ = run(photos / "2.jpg")

    assert (code, account["added"], account["removed"], account["store_rows"]) == (0, 1, 0, 3)
    assert run(photos)[1]["unchanged"] == 3


def test_texts_are_indexed_with_the_columns_that_are_kept(run: Run, tmp_path: Path) -> None:
    """A CSV of captions; `007` stays text."""
    (tmp_path / "captions.csv").write_text("text,license,number\na cat,CC0,007\na dog,it's mine,8\n")

    code, account, _ = run(tmp_path / "captions.csv", "--columns", "license,number")

    assert (code, account["added"]) == (0, 2)
    found = sorted(rows(tmp_path).values(), key=lambda row: row["text"])
    assert found == [
        {"text": "a cat", "license": "CC0", "number": "007"},
        {"text": "a dog", "license": "it's mine", "number": "8"},
    ]


def write_vectors(
    path: Path,
    keys: Sequence[str | None],
    fingerprint: str | None = "fake-8",
    embeddings: pa.Array | None = None,
    **columns: list[Any],
) -> None:
    vectors = (
        np.stack([vector(seed) for seed, _ in enumerate(keys)]) if keys else np.empty((0, 8), np.float32)
    )
    array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), 8)
    table = pa.table({"key": keys, "image_embedding": array if embeddings is None else embeddings, **columns})
    metadata = {"alignserve.fingerprint": fingerprint, "alignserve.model": "fake"} if fingerprint else {}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_vectors_that_exist_need_no_server(run: Run, server: FakeServer, tmp_path: Path) -> None:
    """The output of embed-dataset, with its columns."""
    write_vectors(
        tmp_path / "v.parquet", ["a", "b"], license=["CC0", None], when=[datetime.date(2026, 11, 29), None]
    )

    code, account, _ = run(tmp_path / "v.parquet")

    assert (code, account["added"]) == (0, 2)
    assert server.received == []
    assert rows(tmp_path) == {"a": {"license": "CC0", "when": "2026-11-29"}, "b": {}}
    assert run(tmp_path / "v.parquet")[1]["unchanged"] == 2


def test_vectors_of_an_embedded_dataset_are_indexed(
    run: Run, server: FakeServer, photos: Path, tmp_path: Path
) -> None:
    """`alignserve embed-dataset`, then `alignserve index`: the same rows, and again after a change."""
    embed = ["--server", server.target, "embed-dataset", str(photos), "--to", str(tmp_path / "vectors")]
    assert main(embed) == 0

    code, account, _ = run(tmp_path / "vectors")

    assert (code, account["added"]) == (0, 5)
    assert set(rows(tmp_path)) == {"0.jpg", "1.jpg", "2.jpg", "3.jpg", "sub/0.JPG"}


@pytest.mark.parametrize("bad", [[0.0] * 8, [float("nan")] * 8, [float("inf")] + [1.0] * 7, [1.0] * 7, None])
def test_vectors_without_a_direction_fail_alone(run: Run, tmp_path: Path, bad: list[float] | None) -> None:
    """NaN, zeros, a wrong length or none at all; the others are indexed."""
    vectors = pa.array([vector(0).tolist(), bad, vector(1).tolist()], pa.list_(pa.float32()))
    write_vectors(tmp_path / "v.parquet", ["a", "bad", "c"], embeddings=vectors)

    code, account, _ = run(tmp_path / "v.parquet", "--vector-column", "image_embedding")

    assert (code, account["added"], sum(account["failed"].values())) == (1, 2, 1)
    assert set(rows(tmp_path)) == {"a", "c"}


def test_vectors_without_a_fingerprint_are_refused(run: Run, tmp_path: Path) -> None:
    """The fingerprint can be stated."""
    write_vectors(tmp_path / "v.parquet", ["a"], fingerprint=None)

    code, _, complaints = run(tmp_path / "v.parquet")
    stated, _, _ = run(tmp_path / "v.parquet", "--fingerprint", "fake-8")

    assert code == 4
    assert "--fingerprint" in complaints
    assert stated == 0


def test_a_refused_source_leaves_no_store(run: Run, photos: Path, tmp_path: Path) -> None:
    """Another model could not be indexed into it."""
    (tmp_path / "empty").mkdir()

    code, _, err = run(photos, tmp_path / "empty")

    assert code == 4, err
    assert not (tmp_path / "s").exists()


def test_another_model_is_refused(run: Run, photos: Path, tmp_path: Path) -> None:
    """A store has the vectors of one fingerprint."""
    write_vectors(tmp_path / "v.parquet", ["a"], fingerprint="other")
    run(photos)

    code, _, complaints = run(tmp_path / "v.parquet")

    assert code == 4
    assert "fake-8, not other" in complaints


def test_a_key_that_comes_twice_is_named(run: Run, tmp_path: Path) -> None:
    """Its first row is in the store."""
    write_vectors(tmp_path / "v.parquet", ["a", "a", "b"])

    code, account, _ = run(tmp_path / "v.parquet")

    assert (code, account["failed"], account["store_rows"]) == (1, {"KEY_TWICE": 1}, 2)


def test_a_store_that_is_being_written_is_refused(run: Run, photos: Path, tmp_path: Path) -> None:
    """Nothing is embedded for it."""
    run(photos)
    writer: Store = open_store(tmp_path / "s", for_writing=True)

    code, _, complaints = run(photos)
    writer.close()

    assert code == 4
    assert f"being written by process {os.getpid()}" in complaints


def test_a_killed_run_is_completed_by_the_next(
    run: Run, server: FakeServer, photos: Path, tmp_path: Path
) -> None:
    """kill -9 while the server answers: the store opens, and the same command does the rest."""
    run(photos)
    for number in range(100, 120):
        shutil.copy(photos / "0.jpg", photos / f"{number}.jpg")
        (photos / f"{number}.jpg").write_bytes(f"{number}".encode())
    server.hold()
    killed = subprocess.Popen(
        [
            *(sys.executable, "-m", "alignserve.cli", "--server", server.target),
            *("index", str(photos), "--to", str(tmp_path / "s")),
        ]
    )
    deadline = time.monotonic() + 60
    while embedded(server) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    server.release()

    code, account, _ = run(photos)

    assert (code, account["rows"], account["store_rows"]) == (0, 25, 25)


def test_a_value_of_another_type_fails_its_row(run: Run, tmp_path: Path) -> None:
    """Other rows of the source are indexed; the column keeps the type that it had."""
    write_vectors(tmp_path / "a.parquet", ["a"], v=[1])
    write_vectors(tmp_path / "b.parquet", ["b", "c", "d"], v=["wide", None, "x"])
    run(tmp_path / "a.parquet")

    code, account, complaints = run(tmp_path / "b.parquet")

    assert code == 1
    assert (account["added"], account["failed"], account["store_rows"]) == (1, {"VALUE_INVALID": 2}, 2)
    assert "b: VALUE_INVALID: column 'v' has whole numbers, and 'wide' is not of that type" in complaints
    assert rows(tmp_path) == {"a": {"v": 1}, "c": {}}


def test_a_vector_without_a_key_fails(run: Run, tmp_path: Path) -> None:
    """It is not indexed as `None`, under which the next one would be its duplicate."""
    write_vectors(tmp_path / "a.parquet", [None, "a", None])

    code, account, complaints = run(tmp_path / "a.parquet")

    assert (code, account["failed"], account["store_rows"]) == (1, {"KEY_MISSING": 2}, 1)
    assert "row 2: KEY_MISSING" in complaints


def test_columns_named_like_the_stores_own_are_left_out(run: Run, tmp_path: Path) -> None:
    """They would hide what the store remembers of a row; others may have the engine's names."""
    columns: dict[str, Any] = {name: ["mine"] for name in ("alignserve.source", "_distance", "embedding")}
    write_vectors(tmp_path / "a.parquet", ["a"], **columns)

    assert run(tmp_path / "a.parquet")[0] == 0
    assert rows(tmp_path) == {"a": {"_distance": "mine", "embedding": "mine"}}
    assert run(tmp_path / "a.parquet")[1]["unchanged"] == 1
