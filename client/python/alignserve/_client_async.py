"""The asyncio client."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack, overload

import grpc

from alignserve import _responses, _split_requests
from alignserve._call_defaults import CallDefaults, CallOptions, Metadata, Priority, client_closed
from alignserve._channel import ChannelOptions, channel_options, proxy_options, response_size_metadata
from alignserve._clock import Clock
from alignserve._environment import Connection, Pem, Tls, default_api_key
from alignserve._health import (
    CHECK,
    POLL_SECONDS,
    SERVICE_NAME,
    check_means_not_ready,
    decode_is_serving,
    encode_request,
    not_ready,
    not_serving,
)
from alignserve._images import ImageInput, as_list
from alignserve._items import Dtype, Item, StreamResult
from alignserve._job import Job, OnError, OnProgress, Options
from alignserve._job_async import AsyncJobRun
from alignserve._probe import Probe
from alignserve._queries import Query, Term, as_queries
from alignserve._requests import Limits
from alignserve._results import (
    Classification,
    Comparison,
    Comparisons,
    EmbeddingArray,
    ImageClassifications,
    ImageEmbeddings,
    ModelInfo,
    QueryEmbeddings,
    TextEmbeddings,
)
from alignserve._retry import RetryPolicy
from alignserve._split_requests import SplitRequest
from alignserve._stream_async import AsyncStream
from alignserve._transport_async import AsyncTransport
from alignserve.errors import AlignserveError
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1.align_service_pb2_grpc import AlignServiceStub

if TYPE_CHECKING:
    from alignserve.v1.align_service_pb2_grpc import AlignServiceAsyncStub  # exists for type checkers only

_Result = TypeVar("_Result")


class AsyncClient:
    """`Client` for asyncio: the same methods, arguments and results, awaited.

    It belongs to the event loop in which it is created. Tasks may share it. Close it, or use it in an
    `async with` statement.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        timeout_seconds: float | None = 30.0,
        credentials: grpc.ChannelCredentials | None = None,
        tls: bool | None = None,
        root_certificates: Pem | None = None,
        client_certificate: Pem | None = None,
        client_key: Pem | None = None,
        metadata: Metadata = (),
        api_key: str | None = None,
        priority: Priority = "interactive",
        retry: RetryPolicy | None = None,
        wait_for_ready: bool = False,
        max_in_flight: int = 4,
        options: ChannelOptions = (),
        _clock: Clock | None = None,
    ) -> None:
        security = Tls(credentials, tls, root_certificates, client_certificate, client_key)
        connection = Connection.of(target, security)
        self.target = connection.target.name
        self._defaults = CallDefaults.of(
            timeout_seconds=timeout_seconds,
            metadata=[*metadata, *response_size_metadata(options)],
            api_key=default_api_key(metadata) if api_key is None else api_key,
            priority=priority,
            retry=retry,
            wait_for_ready=wait_for_ready,
            max_in_flight=max_in_flight,
            clock=_clock,
        )
        channel_args = channel_options([*proxy_options(connection.target), *options])
        self._transport = AsyncTransport(
            self._defaults, Probe(connection.target, connection.security, channel_args)
        )
        if (made := connection.security.credentials) is None:
            self._channel = grpc.aio.insecure_channel(self.target, channel_args)
        else:
            self._channel = grpc.aio.secure_channel(self.target, made, channel_args)
        self._stub: AlignServiceAsyncStub = AlignServiceStub(self._channel)
        self._check = self._channel.unary_unary(CHECK, encode_request, decode_is_serving)
        self._info: ModelInfo | None = None
        self._streams: set[AsyncStream] = set()  # open streams

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.target!r})"

    async def close(self) -> None:
        """Closes the connection; calls and streams in flight fail with `CallCancelledError`."""
        self._transport.closed.set()
        for stream in list(self._streams):
            await stream.fail(client_closed())
        await self._channel.close()

    @overload
    async def embed_image(
        self,
        image: ImageInput | Iterable[ImageInput],
        *,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingArray: ...

    # A path as str is also an iterable of str; type checkers take the first signature, which is correct.
    @overload
    async def embed_image(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        *,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["return"],
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingArray | AlignserveError: ...

    @overload
    async def embed_image(
        self,
        image: Iterable[ImageInput],
        *,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["return"],
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> list[EmbeddingArray | AlignserveError]: ...

    async def embed_image(
        self,
        image: ImageInput | Iterable[ImageInput],
        *,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingArray | AlignserveError | list[EmbeddingArray | AlignserveError]:
        """Embeds one image or several; see `Client.embed_image`."""
        images, is_one = as_list(image)
        found = await self.embed_image_detailed(
            images,
            normalize=normalize,
            dtype=dtype,
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
            **call,
        )
        if on_error == "return":
            results: list[EmbeddingArray | AlignserveError] = _responses.in_place(
                found.embeddings, found.errors
            )
            return results[0] if is_one else results
        return found.embeddings[0] if is_one else found.embeddings

    async def embed_image_detailed(
        self,
        image: ImageInput | Iterable[ImageInput],
        *,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> ImageEmbeddings:
        """Like `embed_image`, but also returns timings and errors; a single image gives one row."""
        images, _ = as_list(image)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return await self._run(
            _split_requests.embed_image(images, normalize=normalize, dtype=dtype),
            options,
            self._transport_for(call),
        )

    @overload
    async def embed_text(
        self,
        text: str | Iterable[str],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingArray: ...

    # A str is also an iterable of str, as above.
    @overload
    async def embed_text(  # type: ignore[overload-overlap]
        self,
        text: str,
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["return"],
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingArray | AlignserveError: ...

    @overload
    async def embed_text(
        self,
        text: Iterable[str],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["return"],
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> list[EmbeddingArray | AlignserveError]: ...

    async def embed_text(
        self,
        text: str | Iterable[str],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingArray | AlignserveError | list[EmbeddingArray | AlignserveError]:
        """Embeds one text or several; see `Client.embed_text`."""
        found = await self.embed_text_detailed(
            text,
            truncate=truncate,
            normalize=normalize,
            dtype=dtype,
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
            **call,
        )
        if on_error == "return":
            results: list[EmbeddingArray | AlignserveError] = _responses.in_place(
                found.embeddings, found.errors
            )
            return results[0] if isinstance(text, str) else results
        return found.embeddings[0] if isinstance(text, str) else found.embeddings

    async def embed_text_detailed(
        self,
        text: str | Iterable[str],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> TextEmbeddings:
        """Like `embed_text`, but also returns token counts, timings and errors; one text gives one row."""
        texts = [text] if isinstance(text, str) else list(text)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return await self._run(
            _split_requests.embed_text(texts, truncate=truncate, normalize=normalize, dtype=dtype),
            options,
            self._transport_for(call),
        )

    # As above.
    @overload
    async def classify(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> list[Classification]: ...

    @overload
    async def classify(
        self,
        image: Iterable[ImageInput],
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> list[list[Classification]]: ...

    @overload
    async def classify(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["return"],
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> list[Classification] | AlignserveError: ...

    @overload
    async def classify(
        self,
        image: Iterable[ImageInput],
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["return"],
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> list[list[Classification] | AlignserveError]: ...

    async def classify(
        self,
        image: ImageInput | Iterable[ImageInput],
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> (
        list[Classification]
        | list[list[Classification]]
        | AlignserveError
        | list[list[Classification] | AlignserveError]
    ):
        """Scores one image or several against free-form labels; see `Client.classify`."""
        images, is_one = as_list(image)
        found = await self.classify_detailed(
            images,
            labels,
            prompt_templates=prompt_templates,
            top_k=top_k,
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
            **call,
        )
        if on_error == "return":
            results: list[list[Classification] | AlignserveError] = _responses.in_place(
                found.classifications, found.errors
            )
            return results[0] if is_one else results
        return found.classifications[0] if is_one else list(found.classifications)

    async def classify_detailed(
        self,
        image: ImageInput | Iterable[ImageInput],
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> ImageClassifications:
        """Like `classify`, but also returns timings and errors; a single image gives one list."""
        images, _ = as_list(image)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return await self._run(
            _split_requests.classify(images, labels, prompt_templates=prompt_templates, top_k=top_k),
            options,
            self._transport_for(call),
        )

    # A path and a text as str are also iterables of str, as above.
    @overload
    async def compare(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        text: str,
        *,
        truncate: bool = False,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> Comparison: ...

    @overload
    async def compare(
        self,
        image: Iterable[ImageInput],
        text: Iterable[str],
        *,
        truncate: bool = False,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> list[Comparison]: ...

    @overload
    async def compare(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        text: str,
        *,
        truncate: bool = False,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["return"],
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> Comparison | AlignserveError: ...

    @overload
    async def compare(
        self,
        image: Iterable[ImageInput],
        text: Iterable[str],
        *,
        truncate: bool = False,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["return"],
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> list[Comparison | AlignserveError]: ...

    async def compare(
        self,
        image: ImageInput | Iterable[ImageInput],
        text: str | Iterable[str],
        *,
        truncate: bool = False,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> Comparison | list[Comparison] | AlignserveError | list[Comparison | AlignserveError]:
        """Compares an image with a text, or lists of both pair by pair; see `Client.compare`."""
        images, is_one = as_list(image)
        found = await self.compare_detailed(
            images,
            text,
            truncate=truncate,
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
            **call,
        )
        if on_error == "return":
            results: list[Comparison | AlignserveError] = _responses.in_place(found.comparisons, found.errors)
            return results[0] if is_one else results
        return found.comparisons[0] if is_one else list(found.comparisons)

    async def compare_detailed(
        self,
        image: ImageInput | Iterable[ImageInput],
        text: str | Iterable[str],
        *,
        truncate: bool = False,
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> Comparisons:
        """Like `compare`, but also returns token counts, timings and errors."""
        images, _ = as_list(image)
        texts = [text] if isinstance(text, str) else list(text)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return await self._run(
            _split_requests.compare(images, texts, truncate=truncate), options, self._transport_for(call)
        )

    @overload
    async def embed_query(
        self,
        query: Query,
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingArray: ...

    @overload
    async def embed_query(
        self,
        query: Iterable[Query],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["raise"] = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingArray: ...

    # Both a query and a list of queries are sequences; type checkers take the first signature that fits.
    @overload
    async def embed_query(  # type: ignore[overload-overlap]
        self,
        query: Query,
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["return"],
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingArray | AlignserveError: ...

    @overload
    async def embed_query(
        self,
        query: Iterable[Query],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: Literal["return"],
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> list[EmbeddingArray | AlignserveError]: ...

    async def embed_query(
        self,
        query: Query | Iterable[Query],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingArray | AlignserveError | list[EmbeddingArray | AlignserveError]:
        """Embeds a composed query or several; see `Client.embed_query`."""
        queries, is_one = as_queries(query)
        found = await self.embed_query_detailed(
            queries,
            truncate=truncate,
            normalize=normalize,
            dtype=dtype,
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
            **call,
        )
        if on_error == "return":
            results: list[EmbeddingArray | AlignserveError] = _responses.in_place(
                found.embeddings, found.errors
            )
            return results[0] if is_one else results
        return found.embeddings[0] if is_one else found.embeddings

    async def embed_query_detailed(
        self,
        query: Sequence[Term | Query],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
        total_timeout_seconds: float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        **call: Unpack[CallOptions],
    ) -> QueryEmbeddings:
        """Like `embed_query`, but also returns timings and errors; one query gives one row."""
        queries, _ = as_queries(query)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return await self._run(
            _split_requests.embed_query(queries, truncate=truncate, normalize=normalize, dtype=dtype),
            options,
            self._transport_for(call),
        )

    def stream(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        ordered: bool = False,
        window: int = 32,
        timeout_seconds: float | None = None,
        **call: Unpack[CallOptions],
    ) -> AsyncGenerator[StreamResult, None]:
        """Runs any number of items over one stream; see `Client.stream`.

        Leaving early through `aclose()` or `contextlib.aclosing` cancels the stream at once; a plain `break`
        cancels it when the generator is garbage-collected. A plain iterable is read on the event loop.
        """
        if window < 1:
            raise ValueError(f"window is {window}; at least one item must be in flight")
        return self._stream(items, ordered, window, timeout_seconds, self._transport_for(call))

    async def model_info(
        self, *, timeout_seconds: float | None = None, **call: Unpack[CallOptions]
    ) -> ModelInfo:
        """Returns the model being served and the limits that apply to requests."""
        return await self._ask_info(self._defaults.deadline(timeout_seconds), self._transport_for(call))

    async def is_ready(self, *, timeout_seconds: float = 5.0) -> bool:
        """Returns whether the server can be reached and is ready for calls."""
        return await self._is_serving(timeout_seconds, wait_for_ready=False)

    async def check_ready(self, *, timeout_seconds: float = 5.0) -> None:
        """Returns if the server is ready for calls, and otherwise raises an error that says why not.

        Raises:
            UnavailableError: The server cannot be reached, or is loading, stopping or stalled.
            AlignserveError: The health check failed for another reason.
        """
        if not await self._ask_health(timeout_seconds, explains=True):
            raise not_serving(self.target)

    async def wait_until_ready(self, timeout_seconds: float = 60.0) -> None:
        """Waits until the server can be reached and is ready for calls.

        Raises:
            DeadlineExceededError: The server was not ready in time.
        """
        deadline = self._defaults.clock.monotonic() + timeout_seconds
        remaining = timeout_seconds
        while not await self._is_serving(remaining, wait_for_ready=True):
            remaining = deadline - self._defaults.clock.monotonic() - POLL_SECONDS
            if remaining <= 0:
                cause = await self._transport.cause()
                raise not_ready(self.target, timeout_seconds, cause.message if cause else None)
            await self._transport.pause(POLL_SECONDS)

    async def _stream(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        ordered: bool,
        window: int,
        timeout_seconds: float | None,
        transport: AsyncTransport,
    ) -> AsyncGenerator[StreamResult, None]:
        deadline = math.inf if timeout_seconds is None else self._defaults.deadline(timeout_seconds)
        info = await self._known_info(self._defaults.deadline(timeout_seconds), transport)
        stream = AsyncStream(
            transport,
            self._stub.StreamInfer,
            items,
            ordered=ordered,
            window=window,
            max_request_bytes=info.max_request_bytes,
            deadline=deadline,
        )
        self._streams.add(stream)
        try:
            async with aclosing(stream.results()) as results:
                async for result in results:
                    yield result
        finally:
            self._streams.discard(stream)

    async def _run(self, call: SplitRequest[_Result], options: Options, transport: AsyncTransport) -> _Result:
        end = math.inf
        if options.total_timeout_seconds is not None:
            end = self._defaults.deadline(options.total_timeout_seconds)
        needs_info = len(call.items) > 1 or (call.makes_rows and not call.items) or options.returns_errors
        # A single item either fits into one request or fails, so the limits are used only if already known.
        info = await self._known_info(self._deadline(options, end), transport) if needs_info else self._info

        async def refreshed() -> Limits:
            return Limits.of(await self._ask_info(self._deadline(options, end), transport))

        job = Job(call, Limits.of(info), transport.defaults, options, end)
        method = getattr(self._stub, call.rpc)
        job_run = AsyncJobRun(transport, method, job, refreshed, reads_files=call.reads_files)
        await job_run.run()
        return call.result(job.outcome, info.embedding_dimension if info else 0)

    def _transport_for(self, call: CallOptions) -> AsyncTransport:
        return self._transport.with_defaults(self._defaults.for_call(**call)) if call else self._transport

    def _deadline(self, options: Options, end: float) -> float:
        return min(self._defaults.deadline(options.timeout_seconds), end)

    async def _is_serving(self, timeout_seconds: float, *, wait_for_ready: bool) -> bool:
        try:
            return await self._ask_health(timeout_seconds, wait_for_ready=wait_for_ready)
        except AlignserveError as error:
            return not check_means_not_ready(error)

    async def _ask_health(
        self, timeout_seconds: float, *, wait_for_ready: bool = False, explains: bool = False
    ) -> bool:
        deadline = self._defaults.deadline(timeout_seconds)
        once = dataclasses.replace(
            self._defaults.retry, max_attempts=1
        )  # the answer could change between attempts
        return await self._transport.call(
            self._check,
            SERVICE_NAME,
            deadline,
            wait_for_ready=wait_for_ready,
            retry=once,
            explains=explains,
        )

    async def _known_info(self, deadline: float, transport: AsyncTransport) -> ModelInfo:
        return self._info or await self._ask_info(deadline, transport)

    async def _ask_info(self, deadline: float, transport: AsyncTransport) -> ModelInfo:
        response = await transport.call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), deadline)
        self._info = _responses.model_info(response)
        return self._info
