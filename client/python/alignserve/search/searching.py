"""Answers queries: embeds their terms on a server, and searches a store with the sum."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve._client import Client
from alignserve._items import QueryItem, StreamResult
from alignserve._results import ModelInfo
from alignserve.errors import AlignserveError
from alignserve.search.errors import OtherModelError
from alignserve.search.filters import check_filter
from alignserve.search.queries import BadQuery, QueryError, SearchQuery, composed
from alignserve.search.space import Space, space_of_store
from alignserve.search.store import ColumnKind, Hit, Store


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The rows found for a query.

    Attributes:
        query: As given.
        hits: Best first; empty if there is an error.
        error: Why the query failed, or `None`.
    """

    query: SearchQuery | BadQuery
    hits: Sequence[Hit] = ()
    error: AlignserveError | ValueError | None = None


class Searcher:
    """Searches a store.

    Args:
        store: The store; it stays open.
        client: A client of a server with the store's model; `None` if every term is a row of the store.
        truncate: Truncate texts that are too long, instead of failing their queries.

    Raises:
        AlignserveError: The server cannot be reached.
        OtherModelError: The server has another model.
    """

    def __init__(self, store: Store, client: Client | None = None, *, truncate: bool = False) -> None:
        self._space = space_of_store(store)
        if client is not None:
            _check_same_model(self._space, client.model_info())
        self._store = store
        self._client = client
        self._truncate = truncate
        self._columns: Mapping[str, ColumnKind] = store.columns()

    def search(self, query: SearchQuery) -> list[Hit]:
        """Returns the rows for a query, best first; rows that are its terms are left out.

        Raises:
            AlignserveError: The server refused a term, or cannot be reached.
            FilterError: The filter does not fit the store.
            OSError: An image cannot be read.
            QueryError: The terms cancel out, or the store has no row with a key.
        """
        (answer,) = self.answers([query])
        if answer.error is not None:
            raise answer.error
        return list(answer.hits)

    def answers(self, queries: Iterable[SearchQuery | BadQuery]) -> Iterator[Answer]:
        """Yields an answer for each query, in order; a query that fails does not affect the others.

        Args:
            queries: Any number; at most a window of them is read ahead of the answers.

        Raises:
            AlignserveError: The server cannot be reached any more.
        """
        if self._client is None:
            for query in queries:
                yield self._answer(query, None)
            return
        waiting: deque[SearchQuery | BadQuery] = deque()

        def items() -> Iterator[QueryItem]:
            for query in queries:
                waiting.append(query)
                if isinstance(query, SearchQuery) and (terms := query.for_server()):
                    # Not normalized: stored rows may be added.
                    yield QueryItem(terms, truncate=self._truncate, normalize=False, id=query)

        for result in self._client.stream(items(), ordered=True):
            while waiting[0] is not result.id:  # queries without terms for the server
                yield self._answer(waiting.popleft(), None)
            yield self._answer(waiting.popleft(), result)
        while waiting:
            yield self._answer(waiting.popleft(), None)

    def _answer(self, query: SearchQuery | BadQuery, embedded: StreamResult | None) -> Answer:
        if isinstance(query, BadQuery):
            return Answer(query, error=query.error)
        try:
            where = check_filter(query.where, self._columns)
            vector = composed(query, self._embedding(query, embedded), self._stored(query))
            return Answer(query, self._hits(query, vector, where))
        except (AlignserveError, ValueError) as error:
            return Answer(query, error=error)

    def _hits(self, query: SearchQuery, vector: NDArray[np.float32], where: Mapping[str, Any]) -> list[Hit]:
        named, least = query.stored(), query.min_similarity
        found = self._store.search(vector, query.top_k + len(named), where or None)
        hits = [hit for hit in found if hit.key not in named][: query.top_k]
        return [hit for hit in hits if least is None or hit.similarity >= least]

    def _embedding(self, query: SearchQuery, embedded: StreamResult | None) -> NDArray[np.float32] | None:
        if embedded is not None and embedded.embedding is not None:
            return self._space.of_query(embedded.embedding)
        if query.for_server():
            raise ValueError("texts and images of a query need a client")
        return None

    def _stored(self, query: SearchQuery) -> dict[str, NDArray[np.float32]]:
        keys = list(query.stored())
        found = {entry.key: entry.embedding for entry in self._store.get(keys)} if keys else {}
        missing = [key for key in keys if key not in found]
        if missing:
            raise QueryError(f"the store has no row with the key {missing[0]!r}")
        return found


def _check_same_model(space: Space, info: ModelInfo) -> None:
    if space.model_fingerprint != info.fingerprint:
        raise OtherModelError(
            f"the store has embeddings of model {space.model!r} with fingerprint {space.model_fingerprint}, "
            f"and the server has model {info.model_id!r} with {info.fingerprint}; embeddings of different "
            "models cannot be compared: search on a server with the store's model, or index again on this one"
        )
