"""Memory for responses, from before they are made until their clients have read them.

How much one may take is `ResponseLimit`'s, and how much all of a connection `ConnectionShares`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from alignserve_server.errors import ResponsesUnread
from alignserve_server.rpc.callers import Transport
from alignserve_server.rpc.response_limit import ResponseLimit, response_limit
from alignserve_server.rpc.shares import ConnectionShares, Share


class ResponseRoom:
    """Room for one response, as large as its caller accepts, out of what its connection has left."""

    __slots__ = ("_connection", "_limit", "_share", "_unread", "_waits")

    def __init__(
        self, limit: ResponseLimit, unread: ConnectionShares, connection: str, *, waits: bool
    ) -> None:
        self._limit = limit
        self._unread = unread
        self._connection = connection
        self._waits = waits  # for the client to read, as streams do, instead of being refused
        self._share: Share | None = None

    async def take_for_embeddings(self, field: str, response_bytes: int) -> None:
        """Takes room for a response of so many bytes; `field` holds the request's items.

        Raises:
            BatchTooLarge: The caller does not accept so large a response.
            ResponsesUnread: The connection has not read enough of others.
        """
        await self._take(self._limit.check_embeddings(field, response_bytes))

    async def take_for_classifications(self, response_bytes: int) -> None:
        """Takes room for a response of so many bytes.

        Raises:
            LabelsInvalid: The caller does not accept so large a response.
            ResponsesUnread: The connection has not read enough of others.
        """
        await self._take(self._limit.check_classifications(response_bytes))

    def __enter__(self) -> ResponseRoom:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Gives the room back: the response has been read, or there will be none."""
        if self._share is not None:
            self._share.give_back()

    async def _take(self, size: int) -> None:
        if self._waits:
            self._share = await self._unread.wait(self._connection, size)
            return
        self._share = self._unread.take(self._connection, size)
        if self._share is None:
            unread = self._unread
            raise ResponsesUnread(
                f"{unread.held_by(self._connection)} bytes of responses on this connection are unread or "
                f"being made, {unread.total} in all, limit {unread.limit}, some of it kept for other "
                "connections; read them, then retry",
                retry_delay_seconds=1.0,
            )


class ResponseRooms:
    """Makes room for the responses of all connections."""

    def __init__(self, max_response_bytes: int, unread: ConnectionShares) -> None:
        """Starts with all room there.

        Args:
            max_response_bytes: The most that the server sends in a response.
            unread: The bytes that connections may leave unread.
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
        """Returns what makes room for the response to a stream's item, by its correlation id.

        Raises:
            InvalidArgument: The stream's metadata has a limit that is not a number of bytes.
        """
        return partial(self._of_item, self._limit(transport), transport.peer())

    def _of_item(self, limit: ResponseLimit, connection: str, correlation_id: str) -> ResponseRoom:
        return ResponseRoom(limit.for_item(correlation_id), self._unread, connection, waits=True)

    def _limit(self, transport: Transport) -> ResponseLimit:
        return response_limit(transport.invocation_metadata() or (), self._max_response_bytes)
