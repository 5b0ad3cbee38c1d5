"""Similarities of pairs by the server's `Compare`, over one stream for each shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from alignserve._client import Client
from alignserve._items import CompareItem
from alignserve.datasets.row import RowFailure
from alignserve.errors import InvalidArgumentError

Pair: TypeAlias = tuple[bytes | Path, str]


@dataclass(frozen=True, slots=True)
class Similarity:
    """The cosine similarity of a pair, from -1 to 1, and how many tokens of its text the model read."""

    value: float
    token_count: int


class Comparing:
    """Compares pairs on a server; texts that are too long for the model are truncated.

    Args:
        client: With the priority that its calls are to have.
        window: Pairs in flight.
    """

    def __init__(self, client: Client, window: int = 64) -> None:
        info = client.model_info()
        self.model_id = info.model_id
        self.fingerprint = info.fingerprint
        self._client = client
        self._window = window

    def __call__(self, pairs: Iterable[Pair]) -> Iterator[Similarity | RowFailure]:
        """Yields a result for each pair, in order.

        Raises:
            AlignserveError: The server cannot be reached or fails, which is not the fault of any pair.
        """
        items = (CompareItem(image, text, truncate=True) for image, text in pairs)
        for result in self._client.stream(items, ordered=True, window=self._window):
            if result.error is None and result.tokenization is not None:
                yield Similarity(result.comparison.similarity, result.tokenization.token_count)
            elif isinstance(result.error, InvalidArgumentError):
                yield RowFailure(result.error.reason or "COMPARE_REFUSED", str(result.error))
            else:
                result.result()  # raises
