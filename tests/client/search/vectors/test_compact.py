"""Compact vectors: their form, and that queries go the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignserve.search.compact import FILE, Compaction
from alignserve.search.rotation import fit_itq, fit_pca, identity
from alignserve.search.vectors import VectorsError


def test_each_data_type_has_its_form(rng: np.random.Generator) -> None:
    """float16 has length 1, int8 reaches 127, and binary packs the signs as the server does."""
    vectors = rng.standard_normal((5, 16)).astype(np.float32)

    halves, integers, bits = (
        Compaction(dtype, identity(16), "m").encode(vectors) for dtype in ("float16", "int8", "binary")
    )

    assert (halves.dtype.name, halves.shape) == ("float16", (5, 16))
    assert np.allclose(np.linalg.norm(halves.astype(np.float32), axis=1), 1, atol=1e-3)
    assert (integers.dtype.name, integers.shape) == ("int8", (5, 16))
    assert np.all(np.abs(integers).max(axis=1) == 127)
    assert np.array_equal(bits, np.packbits(vectors > 0, axis=1))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_cosines_remain(rng: np.random.Generator, dtype) -> None:
    """Quantized elements change cosines by less than a hundredth."""
    vectors = rng.standard_normal((50, 64)).astype(np.float32)
    compaction = Compaction(dtype, identity(64), "m")

    compact = compaction.decode(compaction.encode(vectors))

    exact = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(compact @ compact.T, exact @ exact.T, atol=0.01)


def test_bits_compare_by_hamming_distance(rng: np.random.Generator) -> None:
    """The product of decoded vectors falls evenly with the number of bits that differ."""
    compaction = Compaction("binary", identity(64), "m")
    codes = compaction.encode(rng.standard_normal((20, 64)).astype(np.float32))

    products = compaction.decode(codes) @ compaction.decode(codes).T

    distances = np.unpackbits(codes[:, None, :] ^ codes[None, :, :], axis=2).sum(axis=2)
    assert np.allclose(products, 1 - distances / 32, atol=1e-5)


def test_the_file_brings_the_same_codes_for_queries(tmp_path: Path, clouds: Any) -> None:
    """A compaction that was read maps queries as the one that was written."""
    written = Compaction("binary", fit_itq(clouds, 16), "model")
    (tmp_path / FILE).write_bytes(written.to_bytes())

    read = Compaction.load(tmp_path)

    assert read.fingerprint == written.fingerprint
    assert np.array_equal(read.encode(clouds["text"]), written.encode(clouds["text"]))


def test_rotated_vectors_have_a_fingerprint_of_their_own(clouds: Any) -> None:
    """Queries that were not rotated cannot be compared with them; those of other data types can."""

    prints = [
        Compaction("float16", rotation, "model").fingerprint
        for rotation in (identity(32), fit_pca(clouds, 16), fit_pca(clouds, 8))
    ]

    assert prints[0] == "model"
    assert prints[1].startswith("model+pca16-")
    assert len(set(prints)) == 3


def test_a_damaged_file_is_refused(tmp_path: Path, clouds: Any) -> None:
    """Its queries would find nothing."""
    file = tmp_path / FILE
    with pytest.raises(VectorsError, match="missing"):
        Compaction.load(tmp_path)
    content = bytearray(Compaction("float16", fit_pca(clouds, 16), "model").to_bytes())
    for damaged in (content[:100], content[:300] + b"\0\0\0\0" + content[304:]):
        file.write_bytes(damaged)
        with pytest.raises(VectorsError, match="damaged"):
            Compaction.load(tmp_path)
