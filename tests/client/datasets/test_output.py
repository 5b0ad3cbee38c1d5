"""The folder that a job writes: runs that it refuses, and shards that survive or are done again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alignserve.datasets.output import (
    FileProgress,
    Gap,
    OutputBusyError,
    OutputDiffersError,
    OutputError,
    OutputFolder,
    OutputInsideSourceError,
    OutputNotEmptyError,
)
from alignserve.datasets.records import FailedRow, ShardRecord

MANIFEST: dict[str, Any] = {
    "job": "embed",
    "model": {"id": "m", "fingerprint": "f1"},
    "dtype": "float32",
    "sources": [{"name": "a.csv", "digest": "1"}, {"name": "b.csv", "digest": "2"}],
    "options": {"rows_per_shard": 3},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def opened(
    folder: Path,
    changes: dict[str, Any] | None = None,
    *,
    resume: bool = True,
    sources: Sequence[str | Path] = (),
) -> OutputFolder:
    return OutputFolder.create(folder, {**MANIFEST, **(changes or {})}, resume=resume, sources=sources)


def commit(
    output: OutputFolder, file: int, shard: int, *, is_last: bool = False, failed: int = 0, rows: int = 3
) -> ShardRecord:
    """Commits a shard of some rows that follows those of three rows before it."""
    draft = output.draft()
    draft.write_text(f"data of {file} {shard}")
    failures = tuple(FailedRow(f"key-{number}", "BAD", "is bad") for number in range(failed))
    record = ShardRecord(file, shard, shard * 3, shard * 3 + rows, is_last, rows, rows - failed, failures)
    return output.commit(record, {f"part-{output.stem(file, shard)}.parquet": draft})


def shard_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("part-*"))


def test_a_new_output_has_everything_to_do(folder: Path) -> None:
    """Nothing is there yet."""
    with opened(folder) as output:
        progress = output.progress(0)

    assert progress == FileProgress()


def test_a_committed_shard_is_kept_by_a_resumed_run(folder: Path) -> None:
    """The next run goes on behind it."""
    with opened(folder) as output:
        commit(output, 0, 0)

    with opened(folder) as output:
        progress = output.progress(0)

    assert progress == FileProgress(cursor=3, next_shard=1)
    assert shard_names(folder) == ["part-00000-00000.parquet"]


def test_a_file_is_complete_behind_its_last_shard(folder: Path) -> None:
    """Other files are not."""
    with opened(folder) as output:
        commit(output, 0, 0, is_last=True)

    with opened(folder) as output:
        assert output.progress(0).is_complete
        assert not output.progress(1).is_complete


def test_data_without_a_record_is_removed(folder: Path) -> None:
    """The run was killed between the data and the record."""
    with opened(folder) as output:
        commit(output, 0, 0)
    (folder / "part-00000-00001.parquet").write_text("half")
    (folder / "img_emb").mkdir()
    (folder / "img_emb/img_emb_00000-00001.npy").write_text("half")

    with opened(folder) as output:
        assert output.progress(0) == FileProgress(cursor=3, next_shard=1)

    assert shard_names(folder) == ["part-00000-00000.parquet"]
    assert not list(folder.glob("img_emb/*"))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("other data")])
def test_a_missing_or_damaged_shard_is_done_again(folder: Path, damage: Any) -> None:
    """Those behind it are kept."""
    with opened(folder) as output:
        for shard in range(3):
            commit(output, 0, shard)
    damage(folder / "part-00000-00001.parquet")

    with opened(folder) as output:
        progress = output.progress(0)

    assert progress == FileProgress(cursor=9, next_shard=3, gaps=(Gap(1, 3, 6),))
    assert shard_names(folder) == ["part-00000-00000.parquet", "part-00000-00002.parquet"]


def test_damage_of_the_same_size_is_found(folder: Path) -> None:
    """The digest differs where the size does not."""
    with opened(folder) as output:
        commit(output, 0, 0)
    data = folder / "part-00000-00000.parquet"
    data.write_text(data.read_text().replace("data", "date"))

    with opened(folder) as output:
        assert output.progress(0) == FileProgress()


def test_a_record_that_cannot_be_read_counts_as_none(folder: Path) -> None:
    """Its rows are done again."""
    with opened(folder) as output:
        for shard in range(2):
            commit(output, 0, shard)
    (folder / "records/00000-00000.json").write_text("{")

    with opened(folder) as output:
        assert output.progress(0).gaps == (Gap(0, 0, 3),)


def test_two_runs_cannot_write_one_output(folder: Path) -> None:
    """The second is refused, and says who holds it."""
    with opened(folder), pytest.raises(OutputBusyError, match=f"process {os.getpid()}"):
        opened(folder)


def test_the_lock_ends_with_its_run(folder: Path) -> None:
    """The next run gets it."""
    opened(folder).close()

    with opened(folder) as output:
        assert output.progress(0) == FileProgress()


def test_an_output_with_content_is_refused_without_resume(folder: Path) -> None:
    """Its vectors are not overwritten."""
    opened(folder).close()

    with pytest.raises(OutputNotEmptyError, match="--resume"):
        opened(folder, resume=False)


def test_a_folder_with_other_content_is_refused(folder: Path) -> None:
    """Even with --resume."""
    folder.mkdir()
    (folder / "photo.jpg").write_text("a photo")

    with pytest.raises(OutputNotEmptyError, match="not of a job"):
        opened(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"id": "m", "fingerprint": "f2"}}, "model.fingerprint was f1 and is now f2"),
        ({"dtype": "float16"}, "dtype was float32 and is now float16"),
        ({"options": {"rows_per_shard": 4}}, "options.rows_per_shard was 3 and is now 4"),
        ({"sources": [{"name": "a.csv", "digest": "9"}, MANIFEST["sources"][1]]}, "a.csv has changed"),
        ({"sources": [MANIFEST["sources"][0]]}, "b.csv is gone"),
        ({"sources": [*MANIFEST["sources"], {"name": "c.csv", "digest": "3"}]}, "c.csv is new"),
        ({"sources": MANIFEST["sources"][::-1]}, "another order"),
    ],
)
def test_a_run_that_asks_for_something_else_is_refused(
    folder: Path, changes: dict[str, Any], named: str
) -> None:
    """The message names what differs, and the folder stays as it is."""
    opened(folder).close()
    before = (folder / "manifest.json").read_text()

    with pytest.raises(OutputDiffersError, match=named):
        opened(folder, changes)

    assert (folder / "manifest.json").read_text() == before


def test_a_source_that_could_not_be_read_may_change(folder: Path) -> None:
    """None of its rows is in the output."""
    unread = [{"name": "a.csv", "digest": None}, MANIFEST["sources"][1]]
    opened(folder, {"sources": unread}).close()

    opened(folder).close()

    assert json.loads((folder / "manifest.json").read_text())["sources"] == MANIFEST["sources"]


def test_an_output_inside_its_source_is_refused(tmp_path: Path) -> None:
    """By whatever name: directly, through a link, or by a pattern that would match it."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "link").symlink_to(photos)

    cases: list[tuple[Path, str | Path]] = [
        (photos, photos),
        (photos / "new/out", photos),
        (tmp_path / "link/out", photos),
        (photos / "out", tmp_path / "link"),
        (photos / "out", photos / "*"),
        (photos / "out", f"{tmp_path}/ph*"),
    ]

    for folder, source in cases:
        with pytest.raises(OutputInsideSourceError):
            opened(folder, sources=[source])

    assert not list(photos.iterdir())


def test_an_output_beside_its_source_is_accepted(tmp_path: Path) -> None:
    """A pattern that does not match the output leaves its folder free."""
    (tmp_path / "rows.csv").write_text("text\na\n")

    for source in (tmp_path / "rows.csv", tmp_path / "*.csv"):
        opened(tmp_path / "out", sources=[source]).close()


def test_a_pattern_does_not_follow_loops_of_links(tmp_path: Path) -> None:
    """Two links to their own folder make 2^40 paths, if links are followed."""
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / name).symlink_to(".")

    opened(tmp_path / "out", sources=[tmp_path / "in/**/*.jpg"]).close()


def test_the_account_of_all_shards_is_written(folder: Path) -> None:
    """The failures too, as lines that name their source."""
    with opened(folder) as output:
        commit(output, 0, 0, failed=1)
        commit(output, 0, 1, is_last=True, failed=2)
        commit(output, 1, 0, is_last=True)

        ledger = output.finish(skipped={".heic": 2}, problems=["/x: permission denied"])

    assert (ledger.rows_in, ledger.rows_out, dict(ledger.failed)) == (9, 6, {"BAD": 3})
    assert not ledger.is_success
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "complete"
    assert manifest["ledger"] == {
        "rows_in": 9,
        "rows_out": 6,
        "failed": {"BAD": 3},
        "skipped": {".heic": 2},
        "broken": [],
        "problems": ["/x: permission denied"],
    }
    failures = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
    assert failures[0] == {"key": "key-0", "reason": "BAD", "message": "is bad", "source": "a.csv"}
    assert len(failures) == 3


def test_an_output_is_incomplete_until_every_file_is_read_to_its_end(folder: Path) -> None:
    """A gap makes it incomplete as well."""
    with opened(folder) as output:
        commit(output, 0, 1, is_last=True)
        commit(output, 1, 0, is_last=True)

        ledger = output.finish()

    assert ledger.unfinished_files == 1
    assert json.loads((folder / "manifest.json").read_text())["state"] == "incomplete"


def test_a_file_that_breaks_off_is_named_and_tried_again(folder: Path) -> None:
    """The rows before count."""
    with opened(folder) as output:
        record = ShardRecord(0, 0, 0, 2, False, 2, 2, broken="a.csv breaks off at byte 7")
        output.commit(record, {})
        commit(output, 1, 0, is_last=True)
        ledger = output.finish()

    with opened(folder) as output:
        assert ledger.broken == ["a.csv breaks off at byte 7"]
        assert output.progress(0) == FileProgress(2, 1, False, "a.csv breaks off at byte 7")


def test_an_account_that_is_not_balanced_is_never_committed(folder: Path) -> None:
    """A row was lost."""
    with opened(folder) as output, pytest.raises(ValueError, match="3 rows in, but 2 out and 0 failed"):
        output.commit(ShardRecord(0, 0, 0, 3, True, 3, 2), {})


def test_sorted_names_are_in_the_order_of_the_rows(folder: Path) -> None:
    """Past the tenth, and past the hundred-thousandth file."""
    many = [{"name": str(number), "digest": ""} for number in range(100_001)]
    with opened(folder) as output:
        stems = [output.stem(file, shard) for file in (0, 2, 10) for shard in (0, 2, 10, 99_999)]
        with pytest.raises(OutputError, match="make them larger"):
            output.stem(0, 100_000)
    wide = OutputFolder(folder, {**MANIFEST, "sources": many}, None)

    assert stems == sorted(stems)
    assert wide.stem(99_999, 0) < wide.stem(100_000, 0)


def test_another_process_can_join_an_output(folder: Path) -> None:
    """Its shards are part of the account."""
    with opened(folder) as output:
        commit(output, 0, 0, is_last=True)
        joined = OutputFolder.join(folder)
        commit(joined, 1, 0, is_last=True)

        ledger = output.finish()

    assert (ledger.rows_in, ledger.is_complete) == (6, True)


def test_records_survive_their_form_on_disk() -> None:
    """Keys need not be valid Unicode."""
    record = ShardRecord(
        0, 0, 0, 1, True, 1, 0, (FailedRow("caf\udce9\n", "BAD", "é"),), details={"dropped": 1}
    )

    assert ShardRecord.from_json(json.dumps(record.as_json())) == record


def test_a_record_whose_counts_contradict_each_other_is_refused() -> None:
    """Someone has edited it."""
    record = replace(ShardRecord(0, 0, 0, 2, True, 2, 2), rows_out=1)

    with pytest.raises(ValueError, match="contradict"):
        ShardRecord.from_json(json.dumps(record.as_json()))
