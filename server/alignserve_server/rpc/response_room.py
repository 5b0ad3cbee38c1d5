"""Reserves memory for responses, from before the work until their clients have read them.

`ResponseLimit` bounds each response, and `ConnectionShares` all those of a connection.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from alignserve_server.errors import ResponsesUnread
from alignserve_server.rpc.callers import Transport
from alignserve_server.rpc.response_limit import ResponseLimit, response_limit
from alignserve_server.rpc.shares import ConnectionShares, Share


class ResponseRoom:
    """Room for one response, within what its client accepts and what its connection has left."""

    __slots__ = ("_connection", "_expansion", "_limit", "_share", "_unread", "_waits")

    def __init__(
        self, limit: ResponseLimit, unread: ConnectionShares, connection: str, *, waits: bool
    ) -> None:
        self._limit = limit
        self._unread = unread
        self._connection = connection
        self._expansion = 1
        self._waits = waits  # until the client reads, as in a stream, instead of refusing
        self._share: Share | None = None

    def expand(self, factor: int) -> None:
        """Takes into account that the response will take `factor` times its size, for example as JSON."""
        self._expansion = factor

    async def take_for_embeddings(self, field: str, response_bytes: int) -> None:
        """Takes room for a response of the given size; `field` contains the request's items.

        Raises:
            BatchTooLarge: The client does not accept a response of that size.
            ResponsesUnread: Unread responses fill the connection's share.
        """
        await self._take(self._limit.check_embeddings(field, response_bytes))

    async def take_for_classifications(self, field: str, response_bytes: int) -> None:
        """Takes room for a response of the given size; `field` contains the request's labels.

        Raises:
            LabelsInvalid: The client does not accept a response of that size.
            ResponsesUnread: Unread responses fill the connection's share.
        """
        await self._take(self._limit.check_classifications(field, response_bytes))

    def __enter__(self) -> ResponseRoom:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Gives the room back: the response has been read, or there will be none."""
        if self._share is not None:
            self._share.give_back()

    async def _take(self, size: int) -> None:
        size *= self._expansion
        if self._waits:
            self._share = await self._unread.wait(self._connection, size)
            return
        self._share = self._unread.take(self._connection, size)
        if self._share is None:
            unread = self._unread
            raise ResponsesUnread(
                f"{unread.held_by(self._connection)} bytes of responses on this connection are unread or in "
                f"progress, {unread.total} on all connections, limit {unread.limit}, of which a part is "
                "reserved for other connections; read them, then retry",
                retry_delay_seconds=1.0,
            )


class ResponseRooms:
    """Provides room for the responses of all connections."""

    def __init__(self, max_response_bytes: int, unread: ConnectionShares) -> None:
        """Starts empty.

        Args:
            max_response_bytes: Maximum size of a response.
            unread: Shares of the bytes that connections may leave unread.
        """
        self._max_response_bytes = max_response_bytes
        self._unread = unread

    def of_call(self, transport: Transport) -> ResponseRoom:
        """Returns the room for a unary call's response.

        Raises:
            InvalidArgument: The call's metadata has a limit that is not a number of bytes.
        """
        return ResponseRoom(self._limit(transport), self._unread, transport.peer(), waits=False)

    def of_items(self, transport: Transport) -> Callable[[str], ResponseRoom]:
        """Returns a function that returns the room for a stream item's response, given its correlation id.

        Raises:
            InvalidArgument: The stream's metadata has a limit that is not a number of bytes.
        """
        return partial(self._of_item, self._limit(transport), transport.peer())

    def _of_item(self, limit: ResponseLimit, connection: str, correlation_id: str) -> ResponseRoom:
        return ResponseRoom(limit.for_item(correlation_id), self._unread, connection, waits=True)

    def _limit(self, transport: Transport) -> ResponseLimit:
        return response_limit(transport.invocation_metadata() or (), self._max_response_bytes)
