"""Folders of vectors as `alignserve embed-dataset` writes them, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve.cli import main


def unit(vectors: Any) -> Any:
    """Returns the vectors in length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def column(vectors: Any, dtype: str = "float32") -> pa.Array:
    """Returns vectors as a column; rows of `None` are null."""
    dim = next(len(vector) for vector in vectors if vector is not None)
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dim)
    rows = [None if vector is None else np.asarray(vector, dtype) for vector in vectors]
    return pa.array(rows, kind)


@pytest.fixture
def write_folder(tmp_path: Path) -> Any:
    """Writes a folder of vectors in parts, and returns its path."""

    def write(
        name: str = "vectors",
        *,
        image: Any = None,
        text: Any = None,
        columns: dict[str, Sequence[Any]] | None = None,
        parts: int = 2,
        fingerprint: str = "old",
        dtype: str = "float32",
        keys: Sequence[str] | None = None,
        row_group_size: int = 7,
        manifest: dict[str, Any] | None = None,
    ) -> Path:
        count = len(image if image is not None else text)
        arrays = {"key": pa.array(keys or [f"row-{number}" for number in range(count)])}
        if image is not None:
            arrays["image_embedding"] = column(image, dtype)
        if text is not None:
            arrays["text_embedding"] = column(text, dtype)
        arrays.update({key: pa.array(values) for key, values in (columns or {}).items()})
        about = {"fingerprint": fingerprint, "model": "a-model", "dtype": dtype}
        table = pa.table(arrays).replace_schema_metadata(
            {f"alignserve.{key}": value for key, value in about.items()}
        )
        folder = tmp_path / name
        folder.mkdir()
        for part, rows in enumerate(np.array_split(np.arange(count), parts)):
            file = folder / f"part-{part:05}-00000.parquet"
            pq.write_table(table.take(pa.array(rows)), file, row_group_size=row_group_size)
        if manifest is not None:
            (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return write


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def clouds(rng: np.random.Generator) -> dict[str, Any]:
    """Images and texts in two regions of one space, most of whose variance is in 8 of 32 directions."""
    scales = np.r_[np.ones(8), np.full(24, 0.05)]
    turn = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    return {
        name: np.asarray((rng.standard_normal((300, 32)) * scales + offset) @ turn, np.float32)
        for name, offset in (("image", 0.5), ("text", -0.5))
    }
