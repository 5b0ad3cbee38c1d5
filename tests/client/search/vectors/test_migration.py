"""Maps between two models: what they find, and when they are not good enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from alignserve.search.migration import Form, OrthogonalMap, Pairs, choose, fit_map
from alignserve.search.vectors import VectorFolder, VectorsError, vectors_of


def unit(vectors: Any) -> Any:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture
def turn(rng: np.random.Generator) -> Any:
    """A rotation."""
    return np.linalg.qr(rng.standard_normal((32, 32)))[0].astype(np.float32)


@pytest.fixture
def rotated(clouds: Any, turn: Any) -> dict[str, Pairs]:
    """Vectors of an old model, and of a new one that has only turned them."""
    return {name: Pairs(unit(rows), unit(rows) @ turn) for name, rows in clouds.items()}


def test_a_rotation_is_found_in_full(rotated: Any) -> None:
    """Mapped vectors equal the new ones, and the recall is 1 in every direction."""
    found = choose(rotated, "old", "new", seed=0)

    assert found.evaluation.worst_recall == 1
    assert all(cosine["min"] > 0.9999 for cosine in found.evaluation.cosine.values())
    assert found.evaluation.mapped.keys() == {
        "image_to_image",
        "text_to_image",
        "image_to_text",
        "text_to_text",
    }
    assert found.held_out == {"image": 60, "text": 60}
    assert len(found.candidates) == 4
    assert found.unmapped is not None
    assert found.unmapped.worst_recall < 0.5


def test_a_gap_that_has_moved_needs_centring(clouds: Any, turn: Any) -> None:
    """If the new model puts images and texts elsewhere, maps about the means find more."""
    shift = {"image": np.float32(3), "text": np.float32(-3)}
    pairs = {
        name: Pairs(unit(rows), unit((rows + shift[name] * turn[0]) @ turn)) for name, rows in clouds.items()
    }

    found = choose(pairs, "old", "new", seed=0)

    assert found.map.form.is_centred


@pytest.mark.parametrize("new_dim", [24, 48])
def test_dimensions_may_differ(clouds: Any, rng: Any, new_dim: int) -> None:
    """A map has orthonormal rows or columns, whichever are fewer."""
    basis = np.linalg.qr(rng.standard_normal((48, 48)))[0].astype(np.float32)
    pairs = {
        name: Pairs(unit(rows), unit(unit(rows) @ basis[:32, :new_dim])) for name, rows in clouds.items()
    }

    found = fit_map(pairs, "old", "new", Form(is_shared=True, is_centred=False))

    assert choose(pairs, "old", "new", seed=0).unmapped is None
    matrix = found.matrices["image"]
    product = matrix @ matrix.T if new_dim > 32 else matrix.T @ matrix
    assert matrix.shape == (32, new_dim)
    assert np.allclose(product, np.eye(len(product)), atol=1e-4)
    assert found.apply(clouds["image"], "image").shape == (300, new_dim)


def test_an_unrelated_model_is_not_good_enough(clouds: Any, rng: Any) -> None:
    """A map that is fitted to noise finds nothing in rows that were held out."""
    pairs = {name: Pairs(unit(rows), unit(rng.standard_normal((300, 32)))) for name, rows in clouds.items()}

    assert choose(pairs, "old", "new", seed=0).evaluation.worst_recall < 0.4


def test_too_few_pairs_are_refused(rotated: Any) -> None:
    """None could be held out."""
    few = {name: pairs.at(np.arange(5)) for name, pairs in rotated.items()}

    with pytest.raises(VectorsError, match="too few pairs"):
        choose(few, "old", "new", seed=0)


def test_the_file_brings_the_same_map(rotated: Any, tmp_path: Path) -> None:
    """A map that was read maps as the one that was written; a damaged one is refused."""
    written = fit_map(rotated, "old", "new", Form(is_shared=False, is_centred=True))
    file = tmp_path / "map.npz"
    file.write_bytes(written.to_bytes())

    read = OrthogonalMap.load(file)

    assert read.digest() == written.digest()
    rows = rotated["text"].old
    assert np.array_equal(read.apply(rows, "text"), written.apply(rows, "text"))
    file.write_bytes(written.to_bytes()[:-200])
    with pytest.raises(VectorsError, match="damaged"):
        OrthogonalMap.load(file)


@pytest.fixture
def old(write_folder: Any, rotated: Any) -> Path:
    """A folder of the old model, in float16."""
    return write_folder(
        "old",
        image=rotated["image"].old,
        text=rotated["text"].old,
        dtype="float16",
        columns={"page": list(range(300))},
    )


@pytest.fixture
def new(write_folder: Any, rotated: Any) -> Path:
    """Two thirds of the same rows by the new model, in another order."""
    chosen = np.random.default_rng(1).permutation(300)[:200]
    return write_folder(
        "new",
        image=rotated["image"].new[chosen],
        text=rotated["text"].new[chosen],
        keys=[f"row-{number}" for number in chosen],
        fingerprint="new",
    )


def test_all_rows_are_mapped_with_a_sample_of_pairs(
    run: Any, old: Path, new: Path, rotated: Any, tmp_path: Path
) -> None:
    """Pairs are found by their keys. Rows without a pair get vectors near those of the new model."""
    code, out, err = run("migrate-vectors", old, "--paired", new, "--to", tmp_path / "out")

    table = pq.read_table(sorted((tmp_path / "out").glob("*.parquet")))
    mapped = vectors_of(table.column("image_embedding"))[1]
    assert code == 0
    assert "text → image" in out
    assert "300 rows in = 300 out" in err
    assert mapped.dtype == np.float16
    assert np.min(np.sum(mapped.astype(np.float32) * rotated["image"].new, axis=1)) > 0.999
    assert table.column("page").to_pylist() == list(range(300))


def test_the_output_says_that_it_is_mapped(run: Any, old: Path, new: Path, tmp_path: Path) -> None:
    """Queries of the new model fit; the manifest and every part name the old model and the map."""
    run("migrate-vectors", old, "--paired", new, "--to", tmp_path / "out")

    folder = VectorFolder.open(tmp_path / "out")
    section = folder.manifest["migration"]
    assert section["state"] == "mapped"
    assert (section["old"]["fingerprint"], section["new"]["fingerprint"]) == ("old", "new")
    assert folder.fingerprint == "new"
    assert folder.schema.metadata[b"alignserve.mapped_from"] == b"old"
    assert section["digest"] == OrthogonalMap.load(tmp_path / "out/map.npz").digest()
    assert section["recall"]["text_to_image"]["recall_at_10"] > 0.95
    assert section["recall_half_mapped"]["image_to_image"]["recall_at_10"] > 0.95
    assert section["is_good_enough"]


def test_a_map_that_is_not_good_enough_is_refused(
    run: Any, write_folder: Any, rng: Any, old: Path, tmp_path: Path
) -> None:
    """The report says the recall; with --force the folder is written, and says that it is not good enough."""
    noise = unit(rng.standard_normal((300, 32)))
    new = write_folder("new", image=noise, text=noise, fingerprint="new")
    arguments = ("migrate-vectors", old, "--paired", new, "--to", tmp_path / "out")

    code, out, err = run(*arguments)
    was_written = (tmp_path / "out").exists()
    forced, _, warning = run(*arguments, "--force")

    assert (code, was_written, forced) == (4, False, 0)
    assert "recall@10" in out
    assert "embed the rows again with the new model" in err
    assert "below --min-recall" in warning
    assert not json.loads((tmp_path / "out/manifest.json").read_bytes())["migration"]["is_good_enough"]


def test_the_same_model_is_refused(run: Any, old: Path, tmp_path: Path) -> None:
    """There is nothing to map."""
    code, _, err = run("migrate-vectors", old, "--paired", old, "--to", tmp_path / "out")

    assert code == 4
    assert "nothing to map" in err


def test_rotated_vectors_are_mapped_to_whole_ones(run: Any, old: Path, new: Path, tmp_path: Path) -> None:
    """The output is in the space of the new model, and needs no rotation of queries any more."""
    run("compact-vectors", old, "--to", tmp_path / "small", "--dimensions", 16)

    code, _, err = run(
        "migrate-vectors", tmp_path / "small", "--paired", new, "--to", tmp_path / "out", "--min-recall", 0.5
    )

    assert code == 0, err
    folder = VectorFolder.open(tmp_path / "out")
    assert (folder.fingerprint, folder.dimension) == ("new", 32)
    assert folder.mapped_from.startswith("old+pca16-")


def test_new_vectors_must_be_originals(run: Any, old: Path, new: Path, tmp_path: Path) -> None:
    """Rows that are embedded again could not join vectors that imitate rotated ones."""
    run("compact-vectors", new, "--to", tmp_path / "small", "--dimensions", 16)

    code, _, err = run("migrate-vectors", old, "--paired", tmp_path / "small", "--to", tmp_path / "out")

    assert code == 4
    assert "give the folder with the original vectors" in err


def test_folders_without_common_keys_are_refused(
    run: Any, write_folder: Any, rotated: Any, old: Path, tmp_path: Path
) -> None:
    """The message says what to embed."""
    new = write_folder(
        "new", image=rotated["image"].new, keys=[f"other-{n}" for n in range(300)], fingerprint="new"
    )

    code, _, err = run("migrate-vectors", old, "--paired", new, "--to", tmp_path / "out")

    assert code == 4
    assert "no keys in common" in err


def test_a_modality_without_pairs_is_named(
    run: Any, write_folder: Any, rotated: Any, old: Path, tmp_path: Path
) -> None:
    """A folder with images and texts needs new vectors of both."""
    new = write_folder("new", image=rotated["image"].new, fingerprint="new")

    code, _, err = run("migrate-vectors", old, "--paired", new, "--to", tmp_path / "out")

    assert code == 4
    assert "text_embedding" in err


def test_pictures_are_measured_with_texts_from_elsewhere(
    run: Any, write_folder: Any, rotated: Any, tmp_path: Path
) -> None:
    """Text → image is measured by the new model's texts, without texts in either folder."""
    old = write_folder("old", image=rotated["image"].old)
    new = write_folder("new", image=rotated["image"].new, fingerprint="new")
    texts = write_folder("texts", text=rotated["text"].new, fingerprint="new")
    arguments = ("migrate-vectors", old, "--paired", new)

    _, without, _ = run(*arguments, "--to", tmp_path / "one")
    _, with_texts, _ = run(*arguments, "--to", tmp_path / "two", "--texts", texts, "--json")

    assert "text → image was not measured" in without
    assert json.loads(with_texts)["recall"]["text_to_image"]["recall_at_10"] > 0.95
