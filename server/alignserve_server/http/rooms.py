"""Room for answers: `rpc.response_room`, with what HTTP knows about a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.datastructures import Headers

from alignserve_server.rpc.response_limit import MAX_RESPONSE_BYTES_KEY
from alignserve_server.rpc.response_room import ResponseRoom, ResponseRooms


class AnswerRooms:
    """Provides room for the answers to HTTP requests.

    Callers share it, as connections do over gRPC: a connection has one answer at a time, and nothing keeps a
    caller from opening many.
    """

    def __init__(self, rooms: ResponseRooms, max_response_bytes: int) -> None:
        self._rooms = rooms
        self._max_response_bytes = max_response_bytes

    def of_call(self, headers: Headers, caller: str) -> ResponseRoom:
        """Returns the room for an answer.

        HTTP clients have no limit of their own, so the default is what the server sends at most.

        Raises:
            InvalidArgument: The call's header with a limit is not a number of bytes.
        """
        return self._rooms.of_call(AnswerTransport(headers, caller, self._max_response_bytes))


class AnswerTransport:
    """A `rpc.callers.Transport` that has only the caller's limit and name."""

    def __init__(self, headers: Headers, caller: str, max_response_bytes: int) -> None:
        limit = headers.get(MAX_RESPONSE_BYTES_KEY, str(max_response_bytes))
        self._metadata = ((MAX_RESPONSE_BYTES_KEY, limit),)
        self._caller = caller

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        return self._metadata

    def peer(self) -> str:
        return self._caller

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}
