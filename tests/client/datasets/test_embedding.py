"""The job: rows in, embeddings out, in order, whatever servers and rows do meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest
from alignserve.datasets.embedding import RowCounter
from alignserve.datasets.faults import ModelChangedError, RunError
from alignserve.datasets.records import ShardRecord
from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.source import Dataset
from alignserve.testing import FakeServer

from tests.client.datasets.jobs import embed_dataset, rows_of
from tests.client.datasets.memory import MemoryFile, text_dataset, text_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def keys_of(folder: Path) -> list[str]:
    return rows_of(folder)["key"].to_pylist()


async def test_every_row_is_embedded_in_order(server: FakeServer, folder: Path) -> None:
    """With its text, its kept columns and the vector that the server gives for it."""
    ledger = await embed_dataset(text_dataset(25, 0, 3), folder, server.target)

    table = rows_of(folder)
    assert (ledger.rows_in, ledger.rows_out, ledger.is_success) == (28, 28, True)
    assert table["key"].to_pylist() == [
        *(f"f0-{row}" for row in range(25)),
        *(f"f2-{row}" for row in range(3)),
    ]
    assert table["number"].to_pylist() == [*range(25), *range(3)]
    vectors = np.array(table["text_embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(vectors[7], server.embedding_of("f0 text 7"), atol=1e-6)
    assert _names(folder, "part-*") == [
        "part-00000-00000.parquet",
        "part-00000-00001.parquet",
        "part-00000-00002.parquet",
        "part-00002-00000.parquet",
    ]


async def test_calls_have_the_priority_of_the_client(server: FakeServer, folder: Path) -> None:
    """Only streams are used for the rows."""
    await embed_dataset(text_dataset(5), folder, server.target)

    assert {call.method for call in server.received} == {"GetModelInfo", "StreamInfer"}


async def test_rows_that_answer_out_of_order_stay_in_order(server: FakeServer, folder: Path) -> None:
    """A slow row holds up its shard, not its order."""
    server.reverse_answers(8)

    await embed_dataset(text_dataset(8), folder, server.target, streams=1)

    assert keys_of(folder) == [f"f0-{row}" for row in range(8)]


async def test_failed_rows_are_counted_by_their_reasons(server: FakeServer, folder: Path) -> None:
    """Those of the source, and those of the server."""
    server.fail_input("text 1", reason="TEXT_TOO_LONG", message="too long")
    server.fail_input("text 4", reason="TEXT_EMPTY")
    rows = [Row(f"k{number}", text=f"text {number}") for number in range(6)]
    rows[2] = Row("k2", failure=RowFailure("ROW_UNREADABLE", "has 3 cells, not 2"))
    rows[3] = Row("k3")

    ledger = await embed_dataset(_dataset(rows), folder, server.target)

    assert (ledger.rows_in, ledger.rows_out) == (6, 2)
    assert ledger.failed == {"TEXT_TOO_LONG": 1, "TEXT_EMPTY": 1, "ROW_UNREADABLE": 1, "TEXT_MISSING": 1}
    assert keys_of(folder) == ["k0", "k5"]


async def test_a_row_fails_if_its_image_or_its_text_does(server: FakeServer, folder: Path) -> None:
    """It counts once, and is in no file."""
    server.fail_input(b"bad image")
    server.fail_input("bad text", reason="TEXT_EMPTY")
    rows = [
        Row("good", image=b"image", text="text"),
        Row("bad image", image=b"bad image", text="text"),
        Row("bad text", image=b"image", text="bad text"),
        Row("both", image=b"bad image", text="bad text"),
    ]

    ledger = await embed_dataset(_dataset(rows, has_images=True), folder, server.target)

    assert (ledger.rows_in, ledger.rows_out, ledger.failed.total()) == (4, 1, 3)
    assert keys_of(folder) == ["good"]
    assert {"image_embedding", "text_embedding"} <= set(rows_of(folder).column_names)


async def test_images_are_read_from_their_files(server: FakeServer, folder: Path, tmp_path: Path) -> None:
    """One that is missing, a pipe or too large fails by itself."""
    (tmp_path / "a.jpg").write_bytes(b"a")
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "large.jpg").open("wb") as large:
        large.truncate(100 << 20)
    rows = [Row(name, image=tmp_path / name) for name in ("a.jpg", "missing.jpg", "pipe.jpg", "large.jpg")]

    ledger = await embed_dataset(_dataset(rows, has_images=True, has_texts=False), folder, server.target)

    assert ledger.failed == {"IMAGE_UNREADABLE": 1, "IMAGE_NOT_A_FILE": 1, "IMAGE_TOO_LARGE": 1}
    vectors = np.array(rows_of(folder)["image_embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(vectors, [server.embedding_of(b"a")], atol=1e-6)


async def test_a_value_that_does_not_fit_its_column_fails_its_row(server: FakeServer, folder: Path) -> None:
    """Not its shard."""
    rows = [Row("a", text="a", columns={"number": 1}), Row("b", text="b", columns={"number": "two"})]
    schema = pa.schema([("number", pa.int64())])

    ledger = await embed_dataset(
        Dataset([MemoryFile("f", rows)], schema, has_images=False), folder, server.target
    )

    assert ledger.failed == {"COLUMN_UNFIT": 1}
    assert keys_of(folder) == ["a"]


async def test_a_broken_source_is_named_and_other_files_go_on(server: FakeServer, folder: Path) -> None:
    """Its whole part counts."""
    files = [MemoryFile("broken", text_rows(9, "b"), breaks_at=4), MemoryFile("whole", text_rows(2, "w"))]
    dataset = Dataset(files, pa.schema([]), has_images=False)

    ledger = await embed_dataset(dataset, folder, server.target)

    assert (ledger.rows_out, ledger.broken, ledger.is_success) == (6, ["broken breaks off at row 4"], False)


async def test_a_stream_that_breaks_is_opened_again(server: FakeServer, folder: Path) -> None:
    """No row fails, and none comes twice."""
    server.break_stream(after=3, times=2)

    ledger = await embed_dataset(text_dataset(20), folder, server.target, streams=1)

    assert ledger.is_success
    assert keys_of(folder) == [f"f0-{row}" for row in range(20)]


async def test_the_rows_of_a_server_that_goes_away_go_to_another(folder: Path) -> None:
    """The run goes on without it."""
    with FakeServer(embedding_dimension=8) as first, FakeServer(embedding_dimension=8) as second:
        counter = At(first.stop, row_number=10)

        ledger = await embed_dataset(
            text_dataset(200), folder, first.target, second.target, counter=counter, window=4
        )

    assert ledger.is_success
    assert keys_of(folder) == [f"f0-{row}" for row in range(200)]


async def test_rows_wait_for_their_only_server(folder: Path) -> None:
    """It restarts, and the run goes on."""
    with FakeServer(embedding_dimension=8) as server:
        ledger = await embed_dataset(
            text_dataset(200), folder, server.target, counter=At(server.restart, row_number=10)
        )

    assert ledger.is_success
    assert keys_of(folder) == [f"f0-{row}" for row in range(200)]


async def test_a_server_that_stays_away_ends_the_run_and_fails_no_row(folder: Path) -> None:
    """The finished shards are kept, and a resumed run does the rest."""
    with FakeServer(embedding_dimension=8) as server:
        counter = At(server.stop, shard_number=3)
        with pytest.raises(RunError, match=r"no server has answered for 0\.3 s"):
            await embed_dataset(
                text_dataset(500), folder, server.target, counter=counter, max_outage_seconds=0.3
            )
    with FakeServer(embedding_dimension=8) as server:
        ledger = await embed_dataset(text_dataset(500), folder, server.target)
        sent = _texts_sent(server)

    assert (ledger.rows_in, ledger.rows_out) == (500, 500)
    assert 0 < sent <= 470
    assert keys_of(folder) == [f"f0-{row}" for row in range(500)]


async def test_a_server_that_never_answers_ends_the_run(server: FakeServer, folder: Path) -> None:
    """Even if its connection stays."""
    counter = At(server.hold, row_number=1)

    with pytest.raises(RunError, match="no server has answered"):
        await embed_dataset(text_dataset(100), folder, server.target, counter=counter, max_outage_seconds=0.2)
    server.release()


async def test_a_server_that_comes_back_with_another_model_ends_the_run(folder: Path) -> None:
    """Vectors of two models are never mixed."""
    with ExitStack() as stack:
        server = stack.enter_context(FakeServer(embedding_dimension=8))

        def replace() -> None:
            server.stop()
            port = int(server.target.rpartition(":")[2])
            stack.enter_context(FakeServer(embedding_dimension=16, port=port))

        with pytest.raises(ModelChangedError, match="fake-16"):
            await embed_dataset(text_dataset(200), folder, server.target, counter=At(replace, row_number=1))


async def test_servers_of_different_models_are_refused(server: FakeServer, folder: Path) -> None:
    """Before anything is written."""
    with FakeServer(embedding_dimension=16) as other, pytest.raises(ModelChangedError, match="fake-16"):
        await embed_dataset(text_dataset(1), folder, server.target, other.target)

    assert not _names(folder, "*")


async def test_credentials_that_end_in_mid_run_end_it(server: FakeServer, folder: Path) -> None:
    """No row fails for it, and a resumed run does the rest."""

    def revoke() -> None:
        server.fail_next(grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID", times=5, method="GetModelInfo")
        server.restart()

    with pytest.raises(RunError, match="KEY_INVALID"):
        await embed_dataset(text_dataset(200), folder, server.target, counter=At(revoke, row_number=10))
    server.reset()
    ledger = await embed_dataset(text_dataset(200), folder, server.target)

    assert (ledger.rows_in, ledger.rows_out) == (200, 200)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"),
        (grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
        (grpc.StatusCode.UNIMPLEMENTED, ""),
    ],
)
async def test_an_error_that_is_not_about_a_row_ends_the_run(
    server: FakeServer, folder: Path, code: grpc.StatusCode, reason: str
) -> None:
    """No row fails for it."""
    server.fail_input("f0 text 2", code, reason)

    with pytest.raises(RunError):
        await embed_dataset(text_dataset(5), folder, server.target)

    assert not _names(folder, "records/*")


async def test_an_internal_error_fails_its_row_after_three_attempts(server: FakeServer, folder: Path) -> None:
    """One that passes does not."""
    server.fail_input("f0 text 2", grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")
    server.fail_input("f0 text 3", grpc.StatusCode.INTERNAL, "INFERENCE_FAILED", times=2)

    ledger = await embed_dataset(text_dataset(5), folder, server.target)

    assert ledger.failed == {"INFERENCE_FAILED": 1}
    assert keys_of(folder) == ["f0-0", "f0-1", "f0-3", "f0-4"]


async def test_a_server_that_fails_row_after_row_ends_the_run(server: FakeServer, folder: Path) -> None:
    """Its device is broken, and the rows are not."""
    for row in range(40):
        server.fail_input(f"f0 text {row}", grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")

    with pytest.raises(RunError, match="INFERENCE_FAILED"):
        await embed_dataset(text_dataset(40), folder, server.target, rows_per_shard=100)


async def test_a_full_server_gets_the_row_again(server: FakeServer, folder: Path) -> None:
    """After the delay that it asks for."""
    server.fail_input(
        "f0 text 2", grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=0.01, times=5
    )

    ledger = await embed_dataset(text_dataset(5), folder, server.target)

    assert ledger.is_success


@pytest.mark.long
async def test_a_row_that_breaks_the_connection_each_time_is_named(server: FakeServer, folder: Path) -> None:
    """The run ends, instead of going round forever."""
    server.break_stream(after=0, reason="", times=50)

    with pytest.raises(RunError, match="'f0-0' was in flight"):
        await embed_dataset(text_dataset(1), folder, server.target, streams=1)


async def test_half_precision_is_written_as_it_comes(server: FakeServer, folder: Path) -> None:
    """Without going through float32."""
    await embed_dataset(text_dataset(2), folder, server.target, dtype="float16")

    table = rows_of(folder)
    assert table.schema.field("text_embedding").type == pa.list_(pa.float16(), 8)
    assert table.schema.metadata[b"alignserve.fingerprint"] == b"fake-8"
    assert table.schema.metadata[b"alignserve.dtype"] == b"float16"


async def test_a_damaged_shard_alone_is_embedded_again(server: FakeServer, folder: Path) -> None:
    """The others are not sent again."""
    await embed_dataset(text_dataset(30), folder, server.target)
    (folder / "part-00000-00001.parquet").write_bytes(b"broken")
    server.reset()

    ledger = await embed_dataset(text_dataset(30), folder, server.target)

    assert (ledger.rows_in, ledger.rows_out) == (30, 30)
    assert keys_of(folder) == [f"f0-{row}" for row in range(30)]
    assert _texts_sent(server) == 10


async def test_a_finished_output_is_resumed_without_sending_anything(
    server: FakeServer, folder: Path
) -> None:
    """It is checked, and stays as it is."""
    await embed_dataset(text_dataset(5), folder, server.target)
    server.reset()

    ledger = await embed_dataset(text_dataset(5), folder, server.target)

    assert ledger.is_success
    assert "StreamInfer" not in {call.method for call in server.received}


@dataclass
class At(RowCounter):
    """Does something once, at the row or the shard with this number, from 1."""

    action: Callable[[], None]
    row_number: int = 0
    shard_number: int = 0
    rows: int = 0
    shards: int = 0

    def row(self, *, failed: bool) -> None:
        self.rows += 1
        if self.rows == self.row_number:
            self.action()

    def committed(self, record: ShardRecord) -> None:
        self.shards += 1
        if self.shards == self.shard_number:
            self.action()


def _names(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def _texts_sent(server: FakeServer) -> int:
    return sum(
        call.method == "StreamInfer" and call.request.HasField("embed_text") for call in server.received
    )


def _dataset(rows: list[Row], *, has_images: bool = False, has_texts: bool = True) -> Dataset:
    return Dataset([MemoryFile("file", rows)], pa.schema([]), has_images=has_images, has_texts=has_texts)
