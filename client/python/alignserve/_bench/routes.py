"""Routes for requests to the server: unary calls on a channel, or items of a stream."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc

from alignserve._bench.recorder import Failure
from alignserve._bench.wire import content_fields, framed
from alignserve._bench.workload import CLASSIFY, EMBED_IMAGE, EMBED_TEXT, UnaryRequest
from alignserve._channel import SERVICE, channel_options, proxy_options, response_size_metadata
from alignserve._retry import end_of_call
from alignserve._targets import target_of
from alignserve.errors import AlignserveError, UnavailableError, error_from_status
from alignserve.v1 import align_service_pb2 as pb

Metadata = Sequence[tuple[str, str | bytes]]

_STREAM = f"/{SERVICE.full_name}/StreamInfer"
_STREAM_FIELDS = {
    EMBED_IMAGE: pb.StreamInferRequest.EMBED_IMAGE_FIELD_NUMBER,
    EMBED_TEXT: pb.StreamInferRequest.EMBED_TEXT_FIELD_NUMBER,
    CLASSIFY: pb.StreamInferRequest.CLASSIFY_FIELD_NUMBER,
}
_ID = pb.StreamInferRequest.CORRELATION_ID_FIELD_NUMBER  # the same in the response
_ERROR = pb.StreamInferResponse.ERROR_FIELD_NUMBER

# By default all channels to one address share one connection.
_OPTIONS = channel_options([("grpc.use_local_subchannel_pool", 1)])

_ENDED = Failure(grpc.StatusCode.UNAVAILABLE.name, "", "the server ended the stream")
_FORGOTTEN = Failure(grpc.StatusCode.INTERNAL.name, "", "Internal error from Core")


class RequestFailed(Exception):
    """A request was not answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Route(Protocol):
    """One way to the server."""

    async def send(self, call: UnaryRequest, timeout_seconds: float) -> None:
        """Returns once the answer has arrived.

        Raises:
            RequestFailed: The answer is an error, or there was none.
        """


@asynccontextmanager
async def opened_routes(
    target: str,
    *,
    connections: int,
    streams: int,
    timeout_seconds: float,
    credentials: grpc.ChannelCredentials | None,
    metadata: Metadata,
) -> AsyncIterator[list[Route]]:
    """Opens channels, waits until they are connected, and closes them; for unary routes `streams` is 0.

    Raises:
        UnavailableError: A channel did not connect in time.
    """
    channels = [_channel(target, credentials) for _ in range(connections)]
    metadata = [*metadata, *response_size_metadata(_OPTIONS)]
    routes: list[StreamRoute] = []
    try:
        await _connect(channels, target, timeout_seconds)
        if streams:
            routes += [
                StreamRoute(channel, metadata)
                for _, channel in zip(range(streams), itertools.cycle(channels), strict=False)
            ]
            yield list(routes)
        else:
            yield [UnaryRoute(channel, metadata) for channel in channels]
    finally:
        for route in routes:
            await route.close()
        for channel in channels:
            await channel.close()


class UnaryRoute:
    """Sends calls over a channel, as bytes in and out."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = tuple(metadata)
        self._methods: dict[str, Any] = {}  # Any: the stubs have no type for multicallables of bytes

    async def send(self, call: UnaryRequest, timeout_seconds: float) -> None:
        """See `Route.send`."""
        method = self._methods.get(call.method)
        if method is None:
            method = self._methods[call.method] = self._channel.unary_unary(call.method)
        try:
            await method(call.request, timeout=timeout_seconds, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise RequestFailed(_failure(end_of_call(error))) from None


class StreamRoute:
    """Sends calls as items of a stream, and opens a new stream after one breaks."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        method: Any = channel.stream_stream(
            _STREAM
        )  # Any: the stubs have no type for multicallables of bytes
        self._open: Callable[[], Any] = lambda: method(metadata=tuple(metadata))
        self._stream: _Stream | None = None

    async def send(self, call: UnaryRequest, timeout_seconds: float) -> None:
        """See `Route.send`. The timeout includes the wait to write the item while the server is full.

        Raises:
            ValueError: The method cannot be an item of a stream.
        """
        if call.method not in _STREAM_FIELDS:
            raise ValueError(f"{call.method} cannot be sent over a stream")
        if self._stream is None or self._stream.is_broken:
            await self.close()
            self._stream = _Stream(self._open())
        await self._stream.send(call, timeout_seconds)

    async def close(self) -> None:
        """Cancels the stream."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()


class _Stream:
    def __init__(self, call: Any) -> None:
        self.is_broken = False
        self._call = call
        self._numbers = itertools.count()
        self._answers: dict[bytes, asyncio.Future[None]] = {}
        self._unsent: deque[tuple[bytes, UnaryRequest]] = deque()
        self._has_unsent = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def send(self, call: UnaryRequest, timeout_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        number = b"%d" % next(self._numbers)
        answer = self._answers[number] = loop.create_future()
        timer = loop.call_later(timeout_seconds, _expire, answer)
        self._unsent.append((number, call))
        self._has_unsent.set()
        try:
            await answer
        finally:
            timer.cancel()
            self._answers.pop(number, None)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()

    async def _write(self) -> None:
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            while self._unsent:
                number, call = self._unsent.popleft()
                if number in self._answers:  # it has not expired
                    await self._call.write(_stream_request(number, call))

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self._settle(content_fields(message))
            failure = _ENDED
        except grpc.aio.AioRpcError as error:
            failure = _unmasked(_failure(end_of_call(error)))
        self.is_broken = True
        self._tasks[0].cancel()  # writing is no longer possible
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(RequestFailed(failure))

    def _settle(self, fields: dict[int, bytes]) -> None:
        answer = self._answers.get(fields.get(_ID, b""))
        if answer is None or answer.done():
            return  # it arrived too late
        if _ERROR in fields:
            status = pb.StreamInferResponse.FromString(b"".join(framed(_ERROR, [fields[_ERROR]]))).error
            answer.set_exception(RequestFailed(_failure(error_from_status(status))))
        else:
            answer.set_result(None)


def _stream_request(number: bytes, call: UnaryRequest) -> bytes:
    return b"".join((*framed(_ID, [number]), *framed(_STREAM_FIELDS[call.method], [call.request])))


def _expire(answer: asyncio.Future[None]) -> None:
    if not answer.done():
        answer.set_exception(
            RequestFailed(Failure(grpc.StatusCode.DEADLINE_EXCEEDED.name, "", "no answer in time"))
        )


def _unmasked(failure: Failure) -> Failure:
    # grpc.aio loses the server's status if the call ends while it is sending a message.
    return _ENDED if failure == _FORGOTTEN else failure


def _failure(error: AlignserveError) -> Failure:
    return Failure(error.code.name, error.reason, error.message)


def _channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    options = [*_OPTIONS, *proxy_options(target_of(target))]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)


async def _connect(channels: Sequence[grpc.aio.Channel], target: str, timeout_seconds: float) -> None:
    ready = asyncio.gather(*(channel.channel_ready() for channel in channels))
    try:
        await asyncio.wait_for(ready, timeout_seconds)
    except TimeoutError:
        message = f"cannot connect to {target} within {timeout_seconds:g} s"
        raise UnavailableError(message, grpc.StatusCode.UNAVAILABLE) from None
