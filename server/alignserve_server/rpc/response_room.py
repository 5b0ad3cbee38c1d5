"""Memory for responses, from before they are made until their clients have read them.

How much one may take is `ResponseLimit`'s, and how much all of a connection `ConnectionShares`'s.
"""

from __future__ import annotations

from alignserve_server.errors import ResponsesUnread
from alignserve_server.rpc.response_limit import ResponseLimit
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
