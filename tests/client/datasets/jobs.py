"""Runs embedding jobs in tests."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from alignserve import AsyncClient
from alignserve.datasets.embedding import EmbedOptions, RowCounter, embed
from alignserve.datasets.ledger import Ledger
from alignserve.datasets.opened import KINDS, Kind
from alignserve.datasets.output import OutputFolder
from alignserve.datasets.servers import DIRECT, Servers
from alignserve.datasets.sinks.clip_retrieval import ClipRetrievalSink
from alignserve.datasets.sinks.parquet import ParquetSink
from alignserve.datasets.source import Dataset


async def embed_dataset(
    dataset: Dataset,
    folder: Path,
    *targets: str,
    resume: bool = True,
    layout: type[ParquetSink] | type[ClipRetrievalSink] = ParquetSink,
    counter: RowCounter | None = None,
    **options: Any,
) -> Ledger:
    """Embeds a dataset as the command does, and returns the account."""
    has: dict[Kind, bool] = {"image": dataset.has_images, "text": dataset.has_texts}
    kinds = tuple(kind for kind in KINDS if has[kind])
    chosen = EmbedOptions(**{"kinds": kinds, "rows_per_shard": 10, **options})
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(target, retry=DIRECT)) for target in targets]
        servers = await Servers.connect(clients)
        manifest = {
            "job": "embed",
            "model": {"fingerprint": servers.info.fingerprint},
            "sources": [{"name": file.name, "digest": file.digest()} for file in dataset.files],
        }
        output = stack.enter_context(OutputFolder.create(folder, manifest, resume=resume))
        sink = layout(
            dataset.schema,
            chosen.kinds,
            servers.info,
            chosen.dtype,
            has_text=dataset.has_texts,
            has_path=dataset.has_image_files,
        )
        await embed(dataset, output, sink, servers, chosen, counter=counter)
        return output.finish(skipped=dataset.skipped, problems=dataset.problems)


def rows_of(folder: Path) -> pa.Table:
    """Returns the rows of an output in Parquet, in the order of the names of its files."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))
