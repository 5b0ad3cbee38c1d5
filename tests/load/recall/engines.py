"""Engines to compare: how each builds an index of vectors in a folder, and opens it for searches.

pip install lancedb usearch faiss-cpu sqlite-vec qdrant-client qdrant-edge-py milvus-lite pymilvus
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Search: TypeAlias = Callable[[NDArray[np.float32], int], list[int]]
"""Returns the numbers of the nearest rows of a query, (dimension,), best first."""

_BLOCK = 10_000


class Engine(Protocol):
    """An engine with the options to measure."""

    def build(self, folder: Path, images: NDArray[np.float32]) -> None:
        """Writes an index of (rows, dimension) vectors."""

    def open(self, folder: Path, images: Path) -> Search:
        """Opens it; `images` is the file of all vectors, for engines that only have a compressed copy."""


def _blocks(images: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(images), _BLOCK):
        yield start, np.asarray(images[start : start + _BLOCK])


@dataclass(frozen=True)
class Alignserve:
    """The store of `alignserve index`."""

    def build(self, folder: Path, images: NDArray[np.float32]) -> None:
        """Puts the rows, and optimizes."""
        from alignserve.search import Entry, create_store

        store = create_store(
            folder / "store", fingerprint="cones", model="cones", embedding_dimension=images.shape[1]
        )
        for start, block in _blocks(images):
            store.put(
                Entry(str(start + row), vector, {"row": start + row}) for row, vector in enumerate(block)
            )
        store.optimize()
        store.close()

    def open(self, folder: Path, images: Path) -> Search:
        """Opens the store."""
        from alignserve.search import open_store

        store = open_store(folder / "store")
        return lambda query, top_k: [int(hit.key) for hit in store.search(query, top_k)]


@dataclass(frozen=True)
class Lance:
    """LanceDB by itself, with one kind of index."""

    index: str | None = None  # a class of `lancedb.index`; `None` compares all rows
    options: Mapping[str, Any] = field(default_factory=dict)  # Any: of that class
    nprobes: int | None = None
    refine: int | None = None
    ef: int | None = None

    def build(self, folder: Path, images: NDArray[np.float32]) -> None:
        """Appends the rows, and builds the index."""
        import lancedb.index
        import pyarrow as pa

        schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), images.shape[1]))])
        table = lancedb.connect(folder).create_table("vectors", schema=schema)
        for start, block in _blocks(images):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), images.shape[1])
            table.add(pa.table([pa.array(range(start, start + len(block))), vectors], schema=schema))
        table.optimize()
        if self.index is not None:
            config = getattr(lancedb.index, self.index)(distance_type="dot", **self.options)
            table.create_index("vector", config=config)

    def open(self, folder: Path, images: Path) -> Search:
        """Opens the table."""
        import lancedb

        table = lancedb.connect(folder).open_table("vectors")

        def search(query: NDArray[np.float32], top_k: int) -> list[int]:
            found: Any = table.search(query)  # its type lacks what only searches by vectors have
            found = found.distance_type("dot").limit(top_k).select(["row", "_distance"])
            if self.nprobes is not None:
                found = found.nprobes(self.nprobes)
            if self.refine is not None:
                found = found.refine_factor(self.refine)
            if self.ef is not None:
                found = found.ef(self.ef)
            return list(found.to_arrow().column("row").to_pylist())

        return search


@dataclass(frozen=True)
class Exact:
    """numpy over a memory-mapped file: every row is compared."""

    dtype: str = "float32"

    def build(self, folder: Path, images: NDArray[np.float32]) -> None:
        """Copies the vectors."""
        out = np.lib.format.open_memmap(folder / "v.npy", "w+", np.dtype(self.dtype), images.shape)
        for start, block in _blocks(images):
            out[start : start + len(block)] = block
        out.flush()

    def open(self, folder: Path, images: Path) -> Search:
        """Maps the file."""
        vectors = np.load(folder / "v.npy", mmap_mode="r")

        def search(query: NDArray[np.float32], top_k: int) -> list[int]:
            scores = np.concatenate([np.asarray(b, np.float32) @ query for _, b in _blocks(vectors)])
            best = np.argpartition(scores, -top_k)[-top_k:]
            return list(best[np.argsort(-scores[best])].tolist())

        return search


@dataclass(frozen=True)
class Usearch:
    """A graph (HNSW) in one file, mapped into memory; candidates are ranked again with the exact vectors."""

    dtype: str = "f16"
    expansion_add: int = 128
    expansion_search: int = 256
    candidates: int = 50

    def build(self, folder: Path, images: NDArray[np.float32]) -> None:
        """Adds the rows on two threads."""
        from usearch.index import Index

        index = Index(
            ndim=images.shape[1],
            metric="ip",
            dtype=self.dtype,
            connectivity=16,
            expansion_add=self.expansion_add,
        )
        for start, block in _blocks(images):
            index.add(np.arange(start, start + len(block)), block, threads=2)
        index.save(str(folder / "index.usearch"))

    def open(self, folder: Path, images: Path) -> Search:
        """Maps the index and the vectors."""
        from usearch.index import Index

        index = Index.restore(str(folder / "index.usearch"), view=True)
        index.expansion_search = self.expansion_search
        vectors = np.load(images, mmap_mode="r")

        def search(query: NDArray[np.float32], top_k: int) -> list[int]:
            keys = np.asarray(index.search(query, max(top_k, self.candidates), threads=1).keys, np.int64)
            order = np.argsort(-(np.asarray(vectors[keys]) @ query))
            return list(keys[order[:top_k]].tolist())

        return search


@dataclass(frozen=True)
class Faiss:
    """faiss, by an index factory's description; candidates are ranked again with the exact vectors."""

    description: str
    parameters: str
    candidates: int = 100
    training_rows: int = 100_000

    def build(self, folder: Path, images: NDArray[np.float32]) -> None:
        """Trains on a sample, and adds the rows."""
        import faiss

        faiss.omp_set_num_threads(2)
        index = faiss.index_factory(images.shape[1], self.description, faiss.METRIC_INNER_PRODUCT)
        step = max(len(images) // self.training_rows, 1)
        index.train(np.ascontiguousarray(images[::step]))
        for _, block in _blocks(images):
            index.add(block)
        faiss.write_index(index, str(folder / "index.faiss"))

    def open(self, folder: Path, images: Path) -> Search:
        """Reads the index, and maps the vectors."""
        import faiss

        faiss.omp_set_num_threads(1)
        index = faiss.read_index(str(folder / "index.faiss"))
        faiss.ParameterSpace().set_index_parameters(index, self.parameters)
        vectors = np.load(images, mmap_mode="r")

        def search(query: NDArray[np.float32], top_k: int) -> list[int]:
            _, found = index.search(query[None], max(top_k, self.candidates))
            keys = found[0][found[0] >= 0]
            order = np.argsort(-(np.asarray(vectors[keys]) @ query))
            return list(keys[order[:top_k]].tolist())

        return search


@dataclass(frozen=True)
class SqliteVec:
    """sqlite-vec: every row is compared, in SQLite."""

    def build(self, folder: Path, images: NDArray[np.float32]) -> None:
        """Inserts the rows."""
        connection = self._connected(folder)
        connection.execute(
            f"CREATE VIRTUAL TABLE v USING vec0(embedding float[{images.shape[1]}] distance_metric=cosine)"
        )
        for start, block in _blocks(images):
            rows = ((start + row, vector.tobytes()) for row, vector in enumerate(block))
            connection.executemany("INSERT INTO v(rowid, embedding) VALUES (?, ?)", rows)
            connection.commit()
        connection.close()

    def open(self, folder: Path, images: Path) -> Search:
        """Opens the database."""
        connection = self._connected(folder)
        statement = "SELECT rowid FROM v WHERE embedding MATCH ? AND k = ?"
        return lambda query, top_k: [
            row for (row,) in connection.execute(statement, (query.tobytes(), top_k))
        ]

    def _connected(self, folder: Path) -> sqlite3.Connection:
        import sqlite_vec

        connection = sqlite3.connect(folder / "v.db")
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        return connection


@dataclass(frozen=True)
class QdrantLocal:
    """qdrant-client without a server: numpy in the process, all vectors in memory."""

    def build(self, folder: Path, images: NDArray[np.float32]) -> None:
        """Uploads the rows."""
        from qdrant_client import QdrantClient, models

        client = QdrantClient(path=str(folder / "q"))
        client.create_collection("v", models.VectorParams(size=images.shape[1], distance=models.Distance.DOT))
        for start, block in _blocks(images):
            ids = list(range(start, start + len(block)))
            client.upload_collection("v", vectors=block, ids=ids)
        client.close()

    def open(self, folder: Path, images: Path) -> Search:
        """Reads all vectors into memory."""
        from qdrant_client import QdrantClient

        client = QdrantClient(path=str(folder / "q"))
        return lambda query, top_k: [
            int(point.id) for point in client.query_points("v", query.tolist(), limit=top_k).points
        ]


@dataclass(frozen=True)
class QdrantEdge:
    """Qdrant's engine in the process, a beta: HNSW over mapped vectors."""

    hnsw_ef: int = 256
    config: dict[str, Any] = field(default_factory=dict)  # Any: as its types say

    def build(self, folder: Path, images: NDArray[np.float32]) -> None:
        """Upserts the rows, and optimizes."""
        import qdrant_edge as edge

        (folder / "q").mkdir()
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=images.shape[1], distance=edge.Distance.Dot, on_disk=True)
        )
        shard = edge.EdgeShard.create(str(folder / "q"), config)
        for start, block in _blocks(images):
            points = [edge.Point(start + row, vector.tolist(), None) for row, vector in enumerate(block)]
            shard.update(edge.UpdateOperation.upsert_points(points))
        shard.optimize()
        shard.flush()
        shard.close()

    def open(self, folder: Path, images: Path) -> Search:
        """Loads the shard."""
        import qdrant_edge as edge

        shard = edge.EdgeShard.load(str(folder / "q"))
        params = edge.SearchParams(hnsw_ef=self.hnsw_ef)

        def search(query: NDArray[np.float32], top_k: int) -> list[int]:
            request = edge.QueryRequest(
                query=edge.Query.Nearest(query.tolist()), limit=top_k, params=params, with_payload=False
            )
            return [int(point.id) for point in shard.query(request)]

        return search


@dataclass(frozen=True)
class MilvusLite:
    """Milvus Lite through pymilvus."""

    index: str = "HNSW"
    build_parameters: dict[str, Any] = field(default_factory=dict)  # Any: as the index has them
    search_parameters: dict[str, Any] = field(default_factory=dict)

    def build(self, folder: Path, images: NDArray[np.float32]) -> None:
        """Inserts the rows, then builds the index."""
        from pymilvus import DataType, MilvusClient

        client = MilvusClient(str(folder / "m.db"))
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=images.shape[1])
        client.create_collection("v", schema=schema)
        for start, block in _blocks(images):
            for offset in range(0, len(block), 2000):  # 64 MB a message at most
                rows = [
                    {"id": start + offset + row, "vector": vector}
                    for row, vector in enumerate(block[offset : offset + 2000])
                ]
                client.insert("v", rows)
        client.flush("v")
        parameters = client.prepare_index_params()
        parameters.add_index("vector", index_type=self.index, metric_type="IP", params=self.build_parameters)
        client.create_index("v", parameters)
        client.load_collection("v")
        client.close()

    def open(self, folder: Path, images: Path) -> Search:
        """Loads the collection."""
        from pymilvus import MilvusClient

        client = MilvusClient(str(folder / "m.db"))
        client.load_collection("v")
        parameters = {"metric_type": "IP", "params": self.search_parameters}

        def search(query: NDArray[np.float32], top_k: int) -> list[int]:
            (hits,) = client.search("v", [query.tolist()], limit=top_k, search_params=parameters)
            return [hit["id"] for hit in hits]

        return search


_PARTITIONS = {"num_partitions": 100, "sample_rate": 128, "max_iterations": 20}

ENGINES: dict[str, Callable[[], Engine]] = {
    "alignserve": Alignserve,
    "numpy": Exact,
    "numpy-float16": lambda: Exact("float16"),
    "lancedb-flat": Lance,
    "lancedb-sq-5%": lambda: Lance("IvfSq", _PARTITIONS, nprobes=5, refine=5),
    "lancedb-sq-20%": lambda: Lance("IvfSq", _PARTITIONS, nprobes=20, refine=5),
    "lancedb-sq-40%": lambda: Lance("IvfSq", _PARTITIONS, nprobes=40, refine=5),
    "lancedb-sq-100%": lambda: Lance("IvfSq", _PARTITIONS, nprobes=100, refine=5),
    "lancedb-rq1": lambda: Lance("IvfRq", {"num_partitions": 16, "num_bits": 1}, nprobes=16, refine=50),
    "lancedb-rq4": lambda: Lance("IvfRq", {"num_partitions": 16, "num_bits": 4}, nprobes=16, refine=5),
    "lancedb-pq": lambda: Lance("IvfPq", _PARTITIONS, nprobes=40, refine=20),
    "lancedb-hnsw-sq": lambda: Lance("HnswSq", {"num_partitions": 1}, refine=5, ef=300),
    "usearch-f16": Usearch,
    "usearch-i8": lambda: Usearch("i8"),
    "faiss-hnsw-sq8": lambda: Faiss("HNSW16_SQ8", "efSearch=256"),
    "faiss-ivf-sq8": lambda: Faiss("IVF1000,SQ8", "nprobe=64"),
    "sqlite-vec": SqliteVec,
    "qdrant-local": QdrantLocal,
    "qdrant-edge": QdrantEdge,
    "milvus-lite-hnsw": lambda: MilvusLite("HNSW", {"M": 16, "efConstruction": 128}, {"ef": 256}),
}
