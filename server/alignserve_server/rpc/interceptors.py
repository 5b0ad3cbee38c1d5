"""The edge of every RPC: parses the request, counts, times, and turns exceptions into statuses.

gRPC's own edge answers malformed messages and unexpected exceptions with UNKNOWN and the exception's text.
Here both become typed errors that leak nothing. To gRPC every method reads a stream of bytes: a unary call's
request is read here, after its key is known, within a time, and exactly one.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from grpc._cython.cygrpc import (  # exported nowhere else
    ExecuteBatchError,
    _ServerStoppedError,
)

from alignserve_server.errors import (
    BatchTooLarge,
    InternalError,
    RequestMalformed,
    ServingError,
    ShuttingDown,
    TooManyStreams,
    as_value,
)
from alignserve_server.observability.instruments import Distribution, Number
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import PRIORITIES, SIZES, Metrics
from alignserve_server.observability.tracing import CallTrace, Metadata, Tracing
from alignserve_server.rpc import fields
from alignserve_server.rpc.access import Access
from alignserve_server.rpc.callers import caller_of, priority_label
from alignserve_server.rpc.expected import kinds_of_calls, rpc_type
from alignserve_server.rpc.health import HEALTH_SERVICE, SERVICE
from alignserve_server.rpc.reading import Messages, RequestReader, SmallRequestReader
from alignserve_server.rpc.shares import ConnectionShares
from alignserve_server.rpc.status import to_grpc_status

_log = get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Any]
_Follow = Callable[[Callable[[], Metadata | None]], CallTrace | None]

# A client's own timer runs from before the request was on its way, so at the deadline its reset comes first.
_DEADLINE_TOLERANCE_SECONDS = 0.02


def internal_error(where: str, error: BaseException) -> InternalError:
    """Logs an unexpected exception under a new id and returns what the caller may know of it."""
    error_id = secrets.token_hex(8)
    _log.error("unexpected_error", where=where, error_id=error_id, exc_info=error)
    return InternalError(
        f"the server failed; report error id {error_id} to the operator", metadata={"error_id": error_id}
    )


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What connections share while their calls are open."""

    request_timeout_seconds: float  # for the request of a unary call to arrive
    max_uploads: int  # unary calls whose request is arriving, each of which can take a request's memory
    max_streams: int  # of the API and of reflection, each of which can take a request's memory
    max_watches: int = 1000  # of health
    max_health_uploads: int = 16  # calls of the health service whose request is arriving
    max_request_fields: int = 1 << 13  # of a message that is not small


class ServingInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, health and reflection too."""

    def __init__(self, metrics: Metrics, access: Access, tracing: Tracing, limits: ConnectionLimits) -> None:
        self._metrics = metrics
        self._access = access
        self._tracing = tracing
        self._max_request_fields = limits.max_request_fields
        self._closing = asyncio.Event()
        self._reader = RequestReader(
            ConnectionShares(limits.max_uploads, metrics.uploads.labels().set), limits.request_timeout_seconds
        )
        self._health_reader = SmallRequestReader(limits.max_health_uploads, limits.request_timeout_seconds)
        self._streams = ConnectionShares(limits.max_streams, metrics.streams.labels().set)
        self._watches = ConnectionShares(limits.max_watches)
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self.under_way = CallsUnderWay()

    def refuse_uploads(self) -> None:
        """Refuses calls whose request has not arrived."""
        self._reader.interrupt(ShuttingDown)
        self._health_reader.interrupt(ShuttingDown)

    def close_watches(self) -> None:
        """Ends health watches and reflection, now and from now on.

        Clients leave those streams open, so a shutdown that waited for them would last out its grace.
        """
        self._closing.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the wrapped handler of the method; wraps each method once."""
        method = handler_call_details.method
        self._access.identify(method, handler_call_details.invocation_metadata)
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # unknown methods are not kept: their names are the callers'
                return handler
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Makes a handler that gets no request but reads it, so that nothing is read of a refused call.

        What it answers is bytes already: a message and its bytes would both wait for the client to read.
        """
        is_health = _service(method) == HEALTH_SERVICE
        edge = _Edge(
            method,
            handler,
            self._metrics,
            self._access,
            self._tracing,
            self._health_reader if is_health else self._reader,
            self.under_way,
            self._max_request_fields,
        )
        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(edge.answer)
        is_api = edge.service == SERVICE
        answer = partial(
            edge.answer_in_stream,
            open_streams=self._watches if is_health else self._streams,
            closing=None if is_api else self._closing,
        )
        return grpc.stream_stream_rpc_method_handler(answer, None, edge.serialize)


class CallsUnderWay:
    """The calls that a stop waits for: until their last answer is written, watches and reflection aside."""

    def __init__(self) -> None:
        self.started = 0  # since the start
        self._count = 0
        self._none_left = asyncio.Event()
        self._none_left.set()

    def add(self, context: Context) -> None:
        """Counts a call, from now until gRPC is through with it."""
        self.started += 1
        self._count += 1
        self._none_left.clear()
        context.add_done_callback(self._remove)  # type: ignore[arg-type]  # gRPC's class, not a protocol

    async def wait_for_end(self) -> None:
        """Returns once there are none."""
        await self._none_left.wait()

    def _remove(self, _: Context) -> None:
        self._count -= 1
        if not self._count:
            self._none_left.set()


class _Edge:
    """The edge of one method."""

    def __init__(
        self,
        method: str,
        handler: Any,
        metrics: Metrics,
        access: Access,
        tracing: Tracing,
        reader: RequestReader | SmallRequestReader,
        under_way: CallsUnderWay,
        max_request_fields: int,
    ) -> None:
        self._method = method
        self._handler: Handler = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        self._reads_stream: bool = handler.request_streaming
        self._parse_message = handler.request_deserializer
        message = getattr(self._parse_message, "__self__", None)
        self._message: Descriptor | None = getattr(message, "DESCRIPTOR", None)
        self._max_request_fields = max_request_fields
        self._serialize_message = handler.response_serializer
        self._reader = reader
        self._under_way = under_way
        self.service, name = _service(method), method.rpartition("/")[2]
        is_api = self.service == SERVICE
        counts_items = handler.request_streaming and is_api
        self._admitted = partial(access.call, counts_items=counts_items)
        kind = rpc_type(
            request_streaming=handler.request_streaming, response_streaming=handler.response_streaming
        )
        follow = partial(tracing.begin, self.service, name) if is_api else _follow_nothing
        self._calls = _Calls(
            method, metrics, (kind, self.service, name), follow, is_api=is_api, is_batch=counts_items
        )

    async def answer(self, _: object, context: Context) -> bytes:
        self._under_way.add(context)
        answer = await self._answer(context)
        if isinstance(answer, bytes):
            return answer
        # gRPC keeps the exception that this raises, and so its frames: this one knows nothing of the request.
        await context.abort_with_status(answer)
        raise AssertionError  # abort raises

    async def answer_in_stream(
        self, _: object, context: Context, open_streams: ConnectionShares, closing: asyncio.Event | None
    ) -> None:
        if closing is None:
            self._under_way.add(context)
        status = await self._answer_in_stream(context, open_streams, closing)
        if status is not None:
            await context.abort_with_status(status)

    def serialize(self, response: Any) -> bytes:
        """Returns a response as bytes, which it may be already."""
        if isinstance(response, bytes):
            return response
        serialized: bytes = self._serialize_message(response)
        return serialized

    async def _answer(self, context: Context) -> Any:
        """Returns the answer as bytes, or the status of its failure."""
        try:
            with _Handling(self._calls, context) as handling, self._admitted():
                request = await self._request(context)
                handling.items = item_count(request)
                return self.serialize(await self._handler(request, context))
        except ServingError as error:
            return to_grpc_status(as_value(error))

    async def _answer_in_stream(
        self, context: Context, open_streams: ConnectionShares, closing: asyncio.Event | None
    ) -> Any:
        """Writes the answers; returns the status of the stream's failure, or None."""
        try:
            with _Handling(self._calls, context), self._admitted(), _opened(open_streams, context):
                writing = self._write_all(await self._request(context), context)
                await (writing if closing is None else _until(closing, writing))
        except ServingError as error:
            return to_grpc_status(as_value(error))
        return None

    async def _request(self, context: Context) -> Any:
        """Returns what the handler takes: the request, or all of them as an iterator."""
        if self._reads_stream:
            return Messages(context, self._parse)
        return self._parse(await self._reader.read(context))

    def _parse(self, message: bytes) -> Any:
        limit = self._max_request_fields
        if len(message) > fields.SMALL_BYTES and fields.has_more_fields(message, self._message, limit):
            raise BatchTooLarge(
                f"the request has more than {limit} images, texts, labels and other fields, the limit; "
                "send fewer at once"
            )
        try:
            return self._parse_message(message)
        except (DecodeError, UnicodeDecodeError):
            raise RequestMalformed(
                f"the request is not a valid message of {self._method}; use stubs made from its protos"
            ) from None

    async def _write_all(self, given: Any, context: Context) -> None:
        """Runs a streaming handler of either kind: one that yields, or one that writes by itself."""
        result = self._handler(given, context)
        if not inspect.isasyncgen(result):
            await result
            return
        async for response in result:
            await context.write(response)


@contextmanager
def _opened(open_streams: ConnectionShares, context: Context) -> Iterator[None]:
    """Counts a stream as open, for the block.

    Raises:
        TooManyStreams: Its connection has its share already.
    """
    connection = context.peer()
    share = open_streams.take(connection)
    if share is None:
        raise TooManyStreams(
            f"{open_streams.held_by(connection)} streams are open on this connection, {open_streams.total} "
            f"in all, limit {open_streams.limit}, some of it kept for other connections; end some, or spread "
            "them over more connections",
            retry_delay_seconds=1.0,
        )
    try:
        yield
    finally:
        share.give_back()


async def _until(closing: asyncio.Event, writing: Awaitable[None]) -> None:
    working, closed = asyncio.ensure_future(writing), asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait({working, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ShuttingDown()
        working.result()
    finally:
        working.cancel()
        closed.cancel()
        del working  # its error has this frame in its traceback, which would be a cycle


class _Calls:
    """The metrics of one method's calls; each series is looked up once."""

    def __init__(
        self,
        method: str,
        metrics: Metrics,
        labels: tuple[str, str, str],
        follow: _Follow,
        *,
        is_api: bool,
        is_batch: bool,
    ) -> None:
        self.method = method
        self.follow = follow
        self.is_api = is_api
        self.is_batch = is_batch  # always, as a stream of items is
        self.started = metrics.rpcs_started.labels(*labels)
        self.seconds: dict[tuple[str, str], Distribution] = {
            kind: metrics.rpc_seconds.labels(*labels, *kind)
            for kind in kinds_of_calls(labels[1], request_streaming=is_batch)
        }
        self.count_refusal = metrics.count_refusal
        self._handled = metrics.rpcs_handled
        self._labels = labels
        self._handled_by_code: dict[str, Number] = {}

    def handled(self, code: str) -> Number:
        """Returns the counter of calls that end with a code."""
        if code not in self._handled_by_code:
            self._handled_by_code[code] = self._handled.labels(*self._labels, code)
        return self._handled_by_code[code]


class _Handling:
    """Counts and times a call; what its handler raises by mistake becomes an `InternalError`."""

    __slots__ = ("_calls", "_context", "_start", "_trace", "items")

    def __init__(self, calls: _Calls, context: Context) -> None:
        self._calls = calls
        self._context = context
        self.items = 0  # as soon as they are known

    def __enter__(self) -> _Handling:
        self._calls.started.inc()
        self._trace = self._calls.follow(self._context.invocation_metadata)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        code = self._code(error)
        exemplar = None if self._trace is None else self._trace.exemplar
        self._seconds().observe(time.perf_counter() - self._start, exemplar)
        self._calls.handled(code or "INTERNAL").inc()
        if self._trace is not None:
            self._trace.end(code or "INTERNAL", error)
        if code is None:  # nothing unexpected may reach gRPC, which would send its text
            assert isinstance(error, Exception)  # noqa: S101 — `_code` knows all others
            raise internal_error(self._calls.method, error) from error

    def _seconds(self) -> Distribution:
        calls = self._calls
        priority = priority_label(self._context) if calls.is_api else PRIORITIES[0]
        return calls.seconds[priority, SIZES[calls.is_batch or self.items > 1]]

    def _code(self, error: BaseException | None) -> str | None:
        """Names the code with which the call ends, or None if the error is unexpected."""
        if error is None:
            return "OK"
        if isinstance(error, ServingError):
            caller = caller_of(self._context) if self._calls.is_api else None
            self._calls.count_refusal(error, caller, self.items)
            return error.code
        if isinstance(error, grpc.aio.AbortError):  # of handlers that are not ours
            return _name(self._context.code())
        # To a client that has left; or in a call that began as gRPC stopped, which its client knows as lost.
        if isinstance(error, (ExecuteBatchError, _ServerStoppedError)):
            return "CANCELLED"
        if isinstance(error, Exception):
            return None
        return code_of_cancellation(self._context.time_remaining())


def item_count(request: Any) -> int:
    """Returns how many images or texts a request of any kind has; labels are none of them."""
    return len(getattr(request, "images", ()) or getattr(request, "texts", ()))


def _service(method: str) -> str:
    return method.rpartition("/")[0].removeprefix("/")


def _follow_nothing(_: Callable[[], Metadata | None]) -> None:
    """Health checks and reflection would crowd out what is worth following."""


def code_of_cancellation(seconds_remaining: float | None) -> str:
    """Names what ended a call that gRPC cancelled: its client, or its deadline."""
    if seconds_remaining is None or seconds_remaining > _DEADLINE_TOLERANCE_SECONDS:
        return "CANCELLED"
    return "DEADLINE_EXCEEDED"


def _name(code: Any) -> str:
    return code.name if isinstance(code, grpc.StatusCode) else grpc.StatusCode(code).name
