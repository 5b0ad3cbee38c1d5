"""The command compact-vectors: every row comes out, with the recall in the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from alignserve.search.compact import Compaction
from alignserve.search.vectors import VectorFolder, vectors_of


@pytest.fixture
def pairs(write_folder: Any, clouds: Any) -> Path:
    """A folder with images and texts."""
    return write_folder(
        image=clouds["image"], text=clouds["text"], columns={"text": [str(n) for n in range(300)]}, parts=3
    )


def read(folder: Path) -> Any:
    return pq.read_table(sorted(folder.glob("*.parquet")))


def test_rows_in_are_rows_out(run: Any, pairs: Path, tmp_path: Path) -> None:
    """Keys and kept columns stay, part by part; only the vectors change."""
    code, _, err = run("compact-vectors", pairs, "--to", tmp_path / "out", "--dtype", "int8")

    before, after = read(pairs), read(tmp_path / "out")
    assert code == 0
    assert "300 rows in = 300 out + 0 failed" in err
    assert after.select(["key", "text"]).equals(before.select(["key", "text"]))
    assert str(after.schema.field("image_embedding").type).startswith("fixed_size_list<")
    assert vectors_of(after.column("image_embedding"))[1].dtype == np.int8
    assert VectorFolder.open(tmp_path / "out").part_rows == (100, 100, 100)


def test_the_manifest_says_what_is_left(run: Any, pairs: Path, tmp_path: Path) -> None:
    """Recall by direction, sizes, the rotation's digest, and a fingerprint of their own."""
    run(
        *("compact-vectors", pairs, "--to", tmp_path / "out", "--dtype", "float16", "--dimensions", 8),
        *("--queries", 50),
    )

    manifest = json.loads((tmp_path / "out/manifest.json").read_bytes())
    compaction = Compaction.load(tmp_path / "out")
    section = manifest["compact"]
    assert manifest["state"] == "complete"
    assert manifest["ledger"]["rows_out"] == 300
    assert section["bytes_per_vector"] == {"before": 128, "after": 16}
    assert section["digest"] == compaction.digest()
    assert (
        manifest["model"]["fingerprint"]
        == compaction.fingerprint
        == VectorFolder.open(tmp_path / "out").fingerprint
    )
    assert section["recall"].keys() == {
        "image_to_image",
        "text_to_image",
        "image_to_text",
        "text_to_text",
    }
    for figures in section["recall"].values():
        assert 0.5 < figures["recall_at_10"] <= figures["recall_at_10_reranked"] <= 1
        assert figures["queries"] == 50


def test_stored_vectors_are_what_queries_become(run: Any, pairs: Path, tmp_path: Path) -> None:
    """A stored image, asked for again, has exactly the stored bits."""
    run("compact-vectors", pairs, "--to", tmp_path / "out", "--dtype", "binary", "--dimensions", 16)

    codes = vectors_of(read(tmp_path / "out").column("image_embedding"))[1]
    again = Compaction.load(tmp_path / "out").encode(vectors_of(read(pairs).column("image_embedding"))[1])
    assert codes.shape == (300, 2)
    assert np.array_equal(codes, again)


def test_rows_without_a_vector_stay_without(run: Any, write_folder: Any, rng: Any, tmp_path: Path) -> None:
    """A null is not a vector of zeros, and does not count in the recall."""
    rows = [None if number % 3 == 0 else vector for number, vector in enumerate(rng.standard_normal((60, 8)))]
    folder = write_folder(image=rows)

    code, *_ = run("compact-vectors", folder, "--to", tmp_path / "out")

    column = read(tmp_path / "out").column("image_embedding")
    recall = json.loads((tmp_path / "out/manifest.json").read_bytes())["compact"]["recall"]
    assert code == 0
    assert column.null_count == 20
    assert recall["image_to_image"]["rows"] == 40


def test_texts_from_elsewhere_measure_text_to_image(
    run: Any, write_folder: Any, clouds: Any, tmp_path: Path
) -> None:
    """A folder of pictures has no texts; without them the direction is said to be unmeasured."""
    images, texts = write_folder("images", image=clouds["image"]), write_folder("texts", text=clouds["text"])

    _, without, _ = run("compact-vectors", images, "--to", tmp_path / "one", "--dimensions", 8)
    _, with_texts, _ = run(
        "compact-vectors", images, "--to", tmp_path / "two", "--dimensions", 8, "--texts", texts, "--json"
    )

    assert "text → image was not measured" in without
    section = json.loads(with_texts)
    assert section["recall"].keys() == {"image_to_image", "text_to_image"}
    assert section["fitted_to"].keys() == {"image", "text"}


def test_texts_of_another_model_are_refused(run: Any, write_folder: Any, clouds: Any, tmp_path: Path) -> None:
    """Their recall would mean nothing."""
    images = write_folder("images", image=clouds["image"])
    texts = write_folder("texts", text=clouds["text"], fingerprint="new")

    code, _, err = run("compact-vectors", images, "--to", tmp_path / "out", "--texts", texts)

    assert code == 4
    assert "different models cannot be compared" in err
    assert not (tmp_path / "out").exists()


def test_a_recall_that_is_too_low_writes_nothing(run: Any, pairs: Path, tmp_path: Path) -> None:
    """Two of 32 dimensions find little."""
    code, out, err = run(
        "compact-vectors", pairs, "--to", tmp_path / "out", "--dimensions", 2, "--min-recall", 0.9
    )

    assert code == 4
    assert "text → image" in out
    assert "below --min-recall 0.9; nothing was written" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dimensions", 64], "--dimensions 64 is not from 1 to 32"),
        (["--dtype", "binary", "--dimensions", 12], "not a multiple of 8"),
        (["--dimensions", 16, "--rotation", "none"], "needs --rotation pca or itq"),
        (["--rotation", "pca", "--sample", 10, "--queries", 5], "too few to fit 32 dimensions"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Any, pairs: Path, tmp_path: Path, arguments: list[Any], message: str
) -> None:
    """The message has the value and the limit."""
    code, _, err = run("compact-vectors", pairs, "--to", tmp_path / "out", *arguments)

    assert code == 4
    assert message in err


def test_a_run_that_was_killed_is_resumed(run: Any, pairs: Path, tmp_path: Path) -> None:
    """Only the part that is missing is written again, by the same rotation."""
    out = tmp_path / "out"
    arguments = ("compact-vectors", pairs, "--to", out, "--dtype", "binary", "--dimensions", 8)
    run(*arguments)
    whole = read(out)
    lost, kept = sorted(out.glob("*.parquet"))[1:]
    lost.unlink()
    written_at = kept.stat().st_mtime_ns

    refused, _, _ = run(*arguments)
    code, _, err = run(*arguments, "--resume")

    assert refused == 4
    assert code == 0
    assert "300 rows in = 300 out" in err
    assert read(out).equals(whole)
    assert kept.stat().st_mtime_ns == written_at


def test_resuming_with_other_options_is_refused(run: Any, pairs: Path, tmp_path: Path) -> None:
    """The output would mix two kinds of vectors."""
    run("compact-vectors", pairs, "--to", tmp_path / "out", "--dtype", "int8")

    code, _, err = run("compact-vectors", pairs, "--to", tmp_path / "out", "--dtype", "float16", "--resume")

    assert code == 4
    assert "dtype was int8 and is now float16" in err


@pytest.mark.parametrize("form", [("--dtype", "int8"), ("--dimensions", 8)])
def test_compact_vectors_are_not_compacted_again(
    run: Any, pairs: Path, tmp_path: Path, form: tuple[object, ...]
) -> None:
    """The loss would be measured against vectors that have lost already, and queries rotated once only."""
    run("compact-vectors", pairs, "--to", tmp_path / "one", *form)

    code, _, err = run("compact-vectors", tmp_path / "one", "--to", tmp_path / "two")

    assert code == 4
    assert "give the folder with the original vectors" in err


def test_recall_over_no_query_is_not_a_figure(
    run: Any, write_folder: Any, clouds: Any, tmp_path: Path
) -> None:
    """Three rows leave none to ask with, and a bound on the recall cannot be shown to hold."""
    folder = write_folder(image=clouds["image"][:3])

    code, out, err = run("compact-vectors", folder, "--to", tmp_path / "out", "--dtype", "int8")
    refused, *_ = run(
        "compact-vectors", folder, "--to", tmp_path / "two", "--dtype", "int8", "--min-recall", "0.5"
    )

    assert code == 0, err
    assert "not measured" in out
    assert refused == 4


def test_vectors_with_nan_are_refused(run: Any, write_folder: Any, tmp_path: Path) -> None:
    """In int8 and in bits, NaN would become a number."""
    broken = np.eye(30, 16, dtype=np.float32)
    broken[20, 3] = np.nan
    folder = write_folder("broken", image=broken)

    code, _, err = run("compact-vectors", folder, "--to", tmp_path / "out", "--dtype", "int8")

    assert code == 4
    assert "vectors have NaN or infinity in them" in err
    assert not (tmp_path / "out").exists()
