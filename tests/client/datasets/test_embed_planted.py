"""Defects in known numbers, in four kinds of sources at once: each is counted, and none hides another row."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve import cli
from alignserve.testing import FakeServer

from tests.client.datasets.jobs import rows_of

JPEG = b"\xff\xd8\xff"
TOO_LONG = "word " * 80


class Pairs:
    """Images and texts in four kinds of sources, of which some are bad; `expected` counts these by reason."""

    def __init__(self, folder: Path, count: int) -> None:
        self.expected: Counter[str] = Counter()
        self.rows = 0
        self.good: set[str] = set()
        self._folder = folder
        self._count = count
        (folder / "images").mkdir(parents=True)
        self._write_parquet()
        self._write_csv()
        self._write_json_lines()
        self._write_tar()

    def _texts(self, source: str) -> list[str]:
        """Returns texts of which every 10th is bad on the server's side."""
        texts = [f"{source} text {row}" for row in range(self._count)]
        for row in range(0, self._count, 20):
            texts[row] = " "
            self.expected["TEXT_EMPTY"] += 1
        for row in range(10, self._count, 20):
            texts[row] = TOO_LONG
            self.expected["TEXT_TOO_LONG"] += 1
        self.rows += self._count
        return texts

    def _keep(self, source: str, bad: set[int]) -> None:
        self.good |= {f"{source} text {row}" for row in range(self._count) if row % 10 and row not in bad}

    def _write_parquet(self) -> None:
        texts: list[str | None] = [*self._texts("parquet")]
        images: list[dict[str, bytes | str | None] | None] = [
            {"bytes": JPEG + b"parquet %d" % row, "path": None} for row in range(self._count)
        ]
        images[1], images[2], images[3], texts[4] = (
            None,
            {"bytes": None, "path": None},
            {"bytes": b"", "path": ""},
            None,
        )
        images[5] = {"bytes": b"not an image", "path": "5.jpg"}
        self.expected.update(
            ["IMAGE_MISSING", "IMAGE_MISSING", "IMAGE_EMPTY", "TEXT_MISSING", "IMAGE_UNREADABLE"]
        )
        self._keep("parquet", {1, 2, 3, 4, 5})
        table = pa.table({"image": images, "text": texts})
        pq.write_table(table, self._folder / "a.parquet", row_group_size=7)

    def _write_csv(self) -> None:
        lines = ["image,text"]
        for row, text in enumerate(self._texts("csv")):
            self._image(f"csv-{row}.jpg")
            lines.append(f'images/csv-{row}.jpg,"{text}"')
        lines[1 + 1] = "images/csv-1.jpg,too,many"
        lines[1 + 2] = "images/csv-2.jpg"
        lines[1 + 3] = "images/missing.jpg,csv text 3"
        lines[1 + 4] = 'images/csv-4.jpg,"never closed'
        lines[1 + 5] = "https://example.org/5.jpg,csv text 5"
        self.expected.update(["ROW_WIDTH", "ROW_WIDTH", "IMAGE_UNREADABLE", "ROW_QUOTES", "IMAGE_IS_URL"])
        self._keep("csv", {1, 2, 3, 4, 5})
        content = "\ufeff" + "\r\n".join(lines) + "\r\n"
        (self._folder / "b.csv").write_bytes(content.encode())

    def _write_json_lines(self) -> None:
        lines = []
        for row, text in enumerate(self._texts("json")):
            self._image(f"json-{row}.jpg")
            lines.append(json.dumps({"image": f"images/json-{row}.jpg", "text": text}))
        lines[1] = "[1, 2]"
        lines[2] = '{"image": "images/json-2.jpg", "text": "\\ud800"}'
        lines[3] = '{"image": "images/json-3.jpg", "text": 7}'
        lines[4] = '{"image": "images/json-4.jpg"'
        self.expected.update(["JSON_NOT_AN_OBJECT", "TEXT_INVALID", "TEXT_INVALID", "JSON_INVALID"])
        self._keep("json", {1, 2, 3, 4})
        (self._folder / "c.jsonl").write_text("\n\n".join(lines) + "\n")

    def _write_tar(self) -> None:
        with tarfile.open(self._folder / "d.tar", "w") as tar:
            for row, text in enumerate(self._texts("tar")):
                if row != 1:
                    _add(tar, f"tar-{row}.jpg", JPEG + b"tar %d" % row if row != 2 else b"bad")
                if row != 3:
                    _add(tar, f"tar-{row}.txt", text.encode() if row != 4 else b"\xff\xfe")
        self.expected.update(["IMAGE_MISSING", "IMAGE_UNREADABLE", "TEXT_MISSING", "TEXT_INVALID"])
        self._keep("tar", {1, 2, 3, 4})

    def _image(self, name: str) -> None:
        (self._folder / "images" / name).write_bytes(JPEG + name.encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("count", [40, pytest.param(5000, marks=pytest.mark.long)])
def test_planted_defects_are_counted_exactly(tmp_path: Path, count: int) -> None:
    """The others have the embeddings of their own image and text."""
    source = tmp_path / "pairs"
    pairs = Pairs(source, count)
    tables = [str(source / name) for name in ("a.parquet", "b.csv", "c.jsonl", "d.tar")]

    with FakeServer(embedding_dimension=8, checks_images=True) as server:
        code = cli.main(["embed-dataset", *tables, "--to", str(tmp_path / "out"), "--server", server.target])
        vectors = {text: server.embedding_of(text) for text in pairs.good}

    ledger = json.loads((tmp_path / "out/manifest.json").read_text())["ledger"]
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    table = rows_of(tmp_path / "out")
    assert code == 1
    assert ledger["failed"] == pairs.expected
    assert (ledger["rows_in"], ledger["rows_out"]) == (pairs.rows, len(pairs.good))
    assert set(table["text"].to_pylist()) == pairs.good
    assert len(table) == len(pairs.good)
    assert len({*table["key"].to_pylist(), *(failure["key"] for failure in failures)}) == pairs.rows
    for text, vector in zip(table["text"].to_pylist(), table["text_embedding"].to_pylist(), strict=True):
        assert vector == pytest.approx(vectors[text].tolist(), abs=1e-6)
