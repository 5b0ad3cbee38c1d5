"""The command verify-vectors: vectors that have drifted, and inputs that can no longer be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve.search.entries import draw_entries
from alignserve.search.store import Entry
from alignserve.testing import FakeServer

DIM = 16


@pytest.fixture
def server() -> Any:
    with FakeServer(embedding_dimension=DIM) as fake:
        yield fake


@pytest.fixture
def verify(run: Any, server: FakeServer) -> Any:
    """Runs the command; returns its exit code, its report and its last line."""

    def call(folder: Path, *arguments: Any) -> tuple[int, Any, str]:
        code, out, err = run("--server", server.target, "verify-vectors", folder, "--json", *arguments)
        return code, json.loads(out) if out else None, err

    return call


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Twelve files that the fake server takes for images."""
    (tmp_path / "photos").mkdir()
    files = [tmp_path / f"photos/{number:02}.jpg" for number in range(12)]
    for file in files:
        file.write_bytes(f"photo {file.name}".encode())
    return files


@pytest.fixture
def stored(write_folder: Any, server: FakeServer, photos: list[Path]) -> Path:
    """Their vectors, with texts, as the server makes them."""
    texts = [f"text {number}" for number in range(12)]
    return write_folder(
        image=[server.embedding_of(photo.read_bytes()) for photo in photos],
        text=[server.embedding_of(text) for text in texts],
        columns={"text": texts, "image_path": [str(photo) for photo in photos]},
        keys=[photo.name for photo in photos],
        fingerprint=f"fake-{DIM}",
    )


def test_vectors_of_the_same_model_are_the_same(verify: Any, stored: Path) -> None:
    """All cosines are 1, and the exit code is 0."""
    code, report, err = verify(stored)

    assert code == 0
    assert report["verdict"] == "same"
    assert report["drift"].keys() == {"image", "text"}
    assert report["drift"]["image"]["compared"] == 12
    assert report["drift"]["text"]["min"] == pytest.approx(1, abs=1e-4)
    assert report["fingerprints"] == {
        "stored": "fake-16",
        "server": "fake-16",
        "equal": True,
        "mapped_from": "",
    }
    assert "same: 12 of 12 rows drawn, 24 vectors compared" in err


def test_vectors_that_have_drifted_are_counted_and_named(
    verify: Any, stored: Path, server: FakeServer, photos: list[Path]
) -> None:
    """The lowest cosine, the number below the bound and the keys are reported; the exit code is 1."""
    was = server.embedding_of(photos[3].read_bytes())
    away = np.roll(was, 1) - (np.roll(was, 1) @ was) * was
    server.set_embedding(photos[3].read_bytes(), 0.8 * was + 0.6 * away / np.linalg.norm(away))

    code, report, _ = verify(stored)

    assert code == 1
    assert report["verdict"] == "drifted"
    assert report["drift"]["image"]["min"] == pytest.approx(0.8, abs=1e-3)
    assert report["drift"]["image"]["below_bound"] == 1
    assert report["drift"]["text"]["below_bound"] == 0
    assert report["drifted_keys"] == ["03.jpg"]


def test_the_bound_can_be_chosen(verify: Any, stored: Path, server: FakeServer) -> None:
    """Texts of another model are all below 0.999, and above -1."""
    server.set_embedding("text 0", np.eye(DIM)[0])

    assert verify(stored)[0] == 1
    assert verify(stored, "--min-cosine", "-1")[0] == 0


def test_rows_that_can_no_longer_be_read_are_reported(
    verify: Any, stored: Path, server: FakeServer, photos: list[Path]
) -> None:
    """A file that is gone and one that the server refuses count by reason; the exit code is 1."""
    photos[0].unlink()
    server.fail_input(photos[1].read_bytes(), grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNREADABLE")

    code, report, _ = verify(stored)

    assert code == 1
    assert report["verdict"] == "incomplete"
    assert report["not_embedded_again"] == {
        "count": 2,
        "reasons": {"INPUT_UNREADABLE": 1, "IMAGE_UNREADABLE": 1},
    }
    assert report["drift"]["image"]["compared"] == 10
    assert any("00.jpg" in example for example in report["examples"])


def test_a_sample_is_what_was_asked_for(verify: Any, stored: Path, server: FakeServer) -> None:
    """Five rows are embedded, not more; another seed draws others."""
    _, report, _ = verify(stored, "--sample", 5)

    assert (report["rows"], report["sampled"]) == (12, 5)
    assert report["drift"]["text"]["compared"] == 5
    assert len([call for call in server.received if call.method == "StreamInfer"]) <= 11


def test_without_inputs_the_message_says_how_to_give_them(
    verify: Any, write_folder: Any, server: FakeServer
) -> None:
    """A folder with only vectors cannot be verified."""
    folder = write_folder(image=np.eye(DIM), fingerprint="fake-16")

    code, report, err = verify(folder)

    assert (code, report) == (4, None)
    assert "--source" in err
    assert "--image-column" in err


def test_another_model_is_told_from_drift(run: Any, stored: Path) -> None:
    """A server with another dimension is named; nothing is compared."""
    with FakeServer(embedding_dimension=8) as other:
        code, _, err = run("--server", other.target, "verify-vectors", stored)

    assert code == 4
    assert "16 elements, and the server's 8" in err


def test_fingerprints_that_differ_are_said(run: Any, write_folder: Any, server: FakeServer) -> None:
    """If the vectors are still equal, that is not a failure."""
    folder = write_folder(
        text=[server.embedding_of("a"), server.embedding_of("b")], columns={"text": ["a", "b"]}
    )

    code, out, err = run("--server", server.target, "verify-vectors", folder)

    assert code == 0
    assert "stored fingerprint  old" in out
    assert "the fingerprints differ" in err


def test_compact_vectors_are_compared_in_their_own_form(
    run: Any, verify: Any, stored: Path, tmp_path: Path, server: FakeServer
) -> None:
    """New vectors are rotated and quantized as the stored ones were."""
    run("compact-vectors", stored, "--to", tmp_path / "bits", "--dtype", "binary", "--rotation", "none")
    server.set_embedding("text 3", -server.embedding_of("text 3"))

    code, report, _ = verify(tmp_path / "bits")

    assert code == 1
    assert report["drift"]["image"]["min"] == pytest.approx(1)
    assert report["drift"]["text"]["min"] == pytest.approx(-1)
    assert report["fingerprints"]["equal"]


def test_a_dataset_is_verified_with_its_source(
    run: Any, verify: Any, server: FakeServer, photos: list[Path], tmp_path: Path
) -> None:
    """Rows are found in the source by their keys; those that are gone or have changed are reported."""
    vectors = tmp_path / "vectors"
    run("embed-dataset", "--server", server.target, photos[0].parent, "--to", vectors)
    before = verify(vectors, "--source", photos[0].parent)
    photos[2].unlink()
    photos[3].write_bytes(b"another photo")

    code, report, _ = verify(vectors, "--source", photos[0].parent)

    assert before[0] == 0
    assert before[1]["drift"]["image"]["compared"] == 12
    assert code == 1
    assert report["not_embedded_again"]["reasons"] == {"ROW_GONE": 1}
    assert report["drifted_keys"] == ["03.jpg"]


def test_a_store_is_verified(
    run: Any, verify: Any, server: FakeServer, photos: list[Path], tmp_path: Path
) -> None:
    """The files that its rows name are embedded again."""
    store = tmp_path / "store"
    run("--server", server.target, "index", photos[0].parent, "--to", store)
    photos[5].write_bytes(b"another photo")

    code, report, _ = verify(store, "--sample", 1000)

    assert code == 1
    assert (report["rows"], report["sampled"]) == (12, 12)
    assert report["drift"]["image"]["compared"] == 12
    assert report["drift"]["image"]["below_bound"] == 1


def test_a_sample_of_a_store_has_no_row_twice(new_store: Any) -> None:
    """Rows are drawn without repetition, the same ones for the same seed."""
    store = new_store()
    vector = np.eye(store.embedding_dimension, dtype=np.float32)[0]
    store.put([Entry(str(number), vector, {"text": "a"}) for number in range(50)])

    drawn = [sorted(row.key for row in draw_entries(store, 20, seed).entries) for seed in (1, 1, 2)]

    assert len(set(drawn[0])) == 20
    assert drawn[0] == drawn[1] != drawn[2]


def test_mapped_vectors_must_reach_the_cosine_that_was_measured(
    run: Any, verify: Any, stored: Path, write_folder: Any, server: FakeServer, rng: Any, tmp_path: Path
) -> None:
    """They are near the new model's vectors and not equal; the report says what they were mapped from."""
    turn = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    texts = [f"text {number}" for number in range(40)]
    new = np.stack([server.embedding_of(text) for text in texts])
    near = new @ turn + rng.normal(0, 0.02, new.shape)
    old = write_folder("old", text=near / np.linalg.norm(near, axis=1)[:, None], columns={"text": texts})
    run(
        *("--server", server.target, "migrate-vectors", old, "--to", tmp_path / "mapped"),
        *("--min-recall", 0),
    )

    _, report, _ = verify(tmp_path / "mapped")

    assert report["fingerprints"]["mapped_from"] == "old"
    assert report["fingerprints"]["equal"]
    assert 0.9 < report["bound"] < 0.999
    assert report["drift"]["text"]["below_bound"] <= 4


def test_no_server_is_not_drift(run: Any, stored: Path) -> None:
    """The exit code tells a server that is away from vectors that differ."""
    code, _, err = run("--server", "127.0.0.1:1", "--timeout-seconds", "5", "verify-vectors", stored)

    assert code == 3
    assert "no server" in err
