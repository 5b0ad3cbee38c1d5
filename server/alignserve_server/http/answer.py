"""An answer: its status, headers and body."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

JSON = "application/json"

_TURN_SECONDS = 0.002  # of writing, before others get the event loop

HeaderList = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a request. `Content-Length` and headers that every answer has are added later."""

    body: bytes = b""
    status: int = 200
    media_type: str | None = JSON
    headers: HeaderList = ()

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: HeaderList = ()) -> Answer:
        """Returns a small value as JSON. Use `in_parts` for thousands of numbers."""
        return cls(orjson.dumps(value), status, JSON, headers)

    @classmethod
    async def in_parts(cls, parts: Iterable[bytes], media_type: str = JSON) -> Answer:
        """Returns the concatenation of parts, which are made while others get the event loop in between.

        Args:
            parts: A generator, each of whose steps takes less than a millisecond.
            media_type: The type of the whole.
        """
        body = bytearray()
        turn_ends = time.perf_counter() + _TURN_SECONDS
        for part in parts:
            body += part
            if time.perf_counter() > turn_ends:
                await asyncio.sleep(0)
                turn_ends = time.perf_counter() + _TURN_SECONDS
        return cls(bytes(body), 200, media_type)
