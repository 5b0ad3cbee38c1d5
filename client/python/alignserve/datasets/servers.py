"""Sends items over several streams to several servers; those of a server that goes away go to the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from alignserve._client_async import AsyncClient
from alignserve._items import ImageItem, StreamResult, TextItem
from alignserve._results import ModelInfo
from alignserve._retry import RetryPolicy
from alignserve.datasets.backlog import Backlog
from alignserve.datasets.faults import (
    ModelChangedError,
    RunError,
    Verdict,
    verdict_on_item,
    verdict_on_stream,
)
from alignserve.errors import AlignserveError, UnavailableError

DIRECT = RetryPolicy(max_attempts=1, max_stream_attempts=1)
"""For the clients of a job: it looks at the server's model before it opens a stream again."""

_MAX_ATTEMPTS = 3  # of an item that the server fails by its own fault
_MAX_BREAKS = 10  # of streams while an item was in flight
_MAX_FAULTS = 20  # rows that the server failed by its own fault, without any success between them
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.1, 5.0  # before a stream is opened again
_CHECK_SECONDS = 5.0  # for a server to name its model
_MAX_END_SECONDS = 5.0  # for the streams to end in good order


@dataclass(slots=True, eq=False)
class Part:
    """An item on its way: an image or a text of a row.

    Attributes:
        item: As the client takes it.
        size: In bytes.
        key: Of its row, for messages.
    """

    item: ImageItem | TextItem
    size: int
    key: str
    attempts: int = 0
    breaks: int = 0


OnResult = Callable[[Part, StreamResult], None]
"""Takes the embedding of a part, or its final error, which is the row's."""


class Servers:
    """Servers of one model.

    Args:
        clients: One per server, made with `retry=DIRECT`.
        infos: What each of them has said about its model.

    Attributes:
        info: Of all of them.
        count: Number of servers.
    """

    def __init__(self, clients: Sequence[AsyncClient], infos: Sequence[ModelInfo]) -> None:
        self._clients = clients
        self.info = infos[0]
        self.count = len(clients)
        for client, info in zip(clients, infos, strict=True):
            self._check(client, info)

    @classmethod
    async def connect(cls, clients: Sequence[AsyncClient], *, wait_seconds: float = 0.0) -> Servers:
        """Asks all servers for their models.

        Raises:
            ModelChangedError: They do not have the same model.
            AlignserveError: One of them does not answer.
        """
        if wait_seconds:
            await asyncio.gather(*(client.wait_until_ready(wait_seconds) for client in clients))
        return cls(clients, await asyncio.gather(*(client.model_info() for client in clients)))

    async def check(self) -> None:
        """Asks all servers for their models again; those that do not answer are left out.

        Raises:
            ModelChangedError: One of them has another model now.
        """
        for client in self._clients:
            try:
                self._check(client, await client.model_info(timeout_seconds=_CHECK_SECONDS))
            except AlignserveError as error:
                if verdict_on_stream(error) is Verdict.RUN_ENDS:
                    raise RunError(error) from error

    async def run(
        self,
        backlog: Backlog[Part],
        on_result: OnResult,
        *,
        streams: int,
        window: int,
        max_outage_seconds: float,
    ) -> None:
        """Sends the items of a backlog until it is closed.

        Args:
            backlog: Items that are not answered are put back into it.
            on_result: Called once for every item.
            streams: Per server.
            window: Items in flight per stream.
            max_outage_seconds: How long items may wait without an answer from any server.

        Raises:
            RunError: No server answers, or one refuses in a way that no row is to blame for.
            ModelChangedError: A server has come back with another model.
        """
        settler = _Settler(backlog, on_result)
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(_watch(backlog, settler, max_outage_seconds))
            lanes = [
                tasks.create_task(_Lane(client, self._check, settler).run(window))
                for client in self._clients
                for _ in range(streams)
            ]
            await backlog.wait_closed()
            watch.cancel()
            await asyncio.wait(lanes, timeout=_MAX_END_SECONDS)
            for lane in lanes:  # of servers that are away
                lane.cancel()

    def _check(self, client: AsyncClient, info: ModelInfo) -> None:
        for name in ("fingerprint", "embedding_dimension", "dtype"):
            wanted, found = getattr(self.info, name), getattr(info, name)
            if wanted != found:
                raise ModelChangedError(
                    f"{client.target} has a model of {name} {found}, not {wanted}; embeddings of two models "
                    "cannot be compared"
                )


class _Settler:
    """Decides on each answer: it is final, or its item is sent again, or the run ends."""

    def __init__(self, backlog: Backlog[Part], on_result: OnResult) -> None:
        self.backlog = backlog
        self.last_break: AlignserveError | None = None
        self._on_result = on_result
        self._faults = 0  # rows in succession that the server has failed

    def settle(self, part: Part, result: StreamResult) -> None:
        """Handles an answer.

        Raises:
            RunError: It ends the run.
        """
        error = result.error
        if error is not None and not self._is_final(part, error):
            return
        if error is None:
            self._faults = 0
        self.backlog.settle(part)
        self._on_result(part, result)

    def unanswered(self, parts: Sequence[Part], error: AlignserveError) -> None:
        """Handles the items that a stream has left when it broke.

        Raises:
            RunError: The stream's error ends the run, or one of the items may be what breaks the streams.
        """
        self.backlog.put_back(parts)
        if verdict_on_stream(error) is Verdict.RUN_ENDS:
            raise RunError(error)
        self.last_break = error
        for part in parts:
            part.breaks += not error.reason  # a server that stops or is busy gives its reason
            if part.breaks >= _MAX_BREAKS:
                raise RunError(_suspect(part, error))

    def _is_final(self, part: Part, error: AlignserveError) -> bool:
        """Returns whether the row fails; otherwise its item goes again."""
        verdict = verdict_on_item(error)
        if verdict is Verdict.ROW_FAILS:
            return True
        if verdict is Verdict.WAIT:
            delay = error.retry_delay_seconds or _MIN_PAUSE_SECONDS
            asyncio.get_running_loop().call_later(delay, self.backlog.put_back, [part])
            return False
        part.attempts += 1
        if verdict is not Verdict.RUN_ENDS and part.attempts < _MAX_ATTEMPTS:
            self.backlog.put_back([part])
            return False
        self._faults += 1
        if verdict is not Verdict.RETRY or self._faults >= _MAX_FAULTS:
            raise RunError(error)
        return True


class _Lane:
    """One stream to one server, opened again whenever it breaks and the server still has the same model."""

    def __init__(
        self, client: AsyncClient, check: Callable[[AsyncClient, ModelInfo], None], settler: _Settler
    ) -> None:
        self._client = client
        self._check = check
        self._settler = settler
        self._unanswered: dict[int, Part] = {}  # by the identity of their items, in the order of sending
        self._failures = 0  # since the last answer

    async def run(self, window: int) -> None:
        """Runs until the backlog is closed."""
        backlog = self._settler.backlog
        while True:
            error = await self._run_stream(window)
            if error is None or await backlog.wait_closed(self._pause_seconds(error)):
                return

    async def _run_stream(self, window: int) -> AlignserveError | None:
        """Returns why the stream broke, or `None` at the end of the backlog."""
        try:
            if self._failures:
                self._check(self._client, await self._client.model_info())
            async with aclosing(self._client.stream(self._items(), window=window)) as results:
                async for result in results:
                    self._failures = 0
                    self._settler.settle(self._unanswered.pop(id(result.item)), result)
        except AlignserveError as error:
            self._failures += 1
            parts = list(self._unanswered.values())
            self._unanswered.clear()
            self._settler.unanswered(parts, error)
            return error
        return None

    async def _items(self) -> AsyncIterator[ImageItem | TextItem]:
        while (part := await self._settler.backlog.next()) is not None:
            self._unanswered[id(part.item)] = part
            yield part.item

    def _pause_seconds(self, error: AlignserveError) -> float:
        grown = _MIN_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 10)
        return max(min(grown, _MAX_PAUSE_SECONDS), error.retry_delay_seconds or 0.0)


async def _watch(backlog: Backlog[Part], settler: _Settler, max_outage_seconds: float) -> None:
    """Ends the run if items wait for too long without an answer from any server."""
    while (stalled := backlog.stalled_seconds()) < max_outage_seconds:  # noqa: ASYNC110 — time is what it waits for
        await asyncio.sleep(max_outage_seconds - stalled)
    message = f"no server has answered for {max_outage_seconds:g} s"
    raise RunError(_unavailable(message, settler.last_break))


def _suspect(part: Part, error: AlignserveError) -> UnavailableError:
    return _unavailable(
        f"the connection broke {part.breaks} times while the row {part.key!r} was in flight, which may be "
        "why; look into the server's log, or leave the row out",
        error,
    )


def _unavailable(message: str, cause: AlignserveError | None) -> UnavailableError:
    """Returns an error whose message needs no more advice, with what the connection said last."""
    said = f"; the last error is: {cause.message}" if cause else "; look into their logs"
    error = UnavailableError(message + said, grpc.StatusCode.UNAVAILABLE)
    error.__cause__ = cause or TimeoutError()
    return error
