"""The streams that are open on a server: each ends at its maximum age, and all at a stop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from alignserve_server.errors import ShuttingDown, StreamAged
from alignserve_server.rpc.item_stream import ItemStream

_Request = TypeVar("_Request")


class OpenStreams:
    """Runs streams, and ends them early where the server has to."""

    def __init__(self, max_age_seconds: float | None) -> None:
        """Starts with none; without a maximum age, only a stop ends them."""
        self._max_age_seconds = max_age_seconds
        self._streams: set[ItemStream[Any]] = set()

    async def run(self, stream: ItemStream[_Request], requests: AsyncIterator[_Request]) -> None:
        """Answers a stream until it ends.

        Raises:
            ServingError: The stream cannot continue; everything read before has been answered.
        """
        self._streams.add(stream)
        aging = self._end_at_age(stream)
        try:
            await stream.run(requests)
        finally:
            if aging is not None:
                aging.cancel()
            self._streams.discard(stream)

    def drain(self) -> None:
        """Ends every stream once it has answered the items that it has read."""
        for stream in self._streams:
            stream.drain(ShuttingDown)

    def _end_at_age(self, stream: ItemStream[_Request]) -> asyncio.TimerHandle | None:
        if self._max_age_seconds is None:
            return None
        # Random, up to the limit: streams that started together should not all reconnect together.
        age_seconds = self._max_age_seconds * random.uniform(0.9, 1.0)  # noqa: S311 — not a secret
        return asyncio.get_running_loop().call_later(age_seconds, stream.drain, StreamAged)
