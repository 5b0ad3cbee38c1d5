"""The asyncio client."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack, overload

import grpc

from alignserve import _calls, _responses
from alignserve._caller_async import AsyncCaller
from alignserve._calls import Call
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
from alignserve._requests import Limits
from alignserve._results import (
    Classification,
    EmbeddingArray,
    ImageClassifications,
    ImageEmbeddings,
    ModelInfo,
    TextEmbeddings,
)
from alignserve._retry import RetryPolicy
from alignserve._stream_async import AsyncStream
from alignserve._terms import CallOptions, Metadata, Priority, Terms, client_closed
from alignserve.errors import AlignserveError
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1.align_service_pb2_grpc import AlignServiceStub

if TYPE_CHECKING:
    from alignserve.v1.align_service_pb2_grpc import AlignServiceAsyncStub  # exists for type checkers only

_Result = TypeVar("_Result")


class AsyncClient:
    """`Client` for asyncio: the same calls, arguments and results, to be awaited.

    It belongs to the event loop inside which it is made. Tasks may share it; close it, or use it in an
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
        self._terms = Terms.of(
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
        self._caller = AsyncCaller(self._terms, Probe(connection.target, connection.security, channel_args))
        if (made := connection.security.credentials) is None:
            self._channel = grpc.aio.insecure_channel(self.target, channel_args)
        else:
            self._channel = grpc.aio.secure_channel(self.target, made, channel_args)
        self._stub: AlignServiceAsyncStub = AlignServiceStub(self._channel)
        self._check = self._channel.unary_unary(CHECK, encode_request, decode_is_serving)
        self._info: ModelInfo | None = None
        self._streams: set[AsyncStream] = set()  # those that are open

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.target!r})"

    async def close(self) -> None:
        """Closes the connection; calls in flight and streams end with `CallCancelledError`."""
        self._caller.closed.set()
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

    # A path as str is also an iterable of str; the first signature is meant, and the first one is taken.
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
        """Embeds an image, or several; see `Client.embed_image`."""
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
        """Embeds like `embed_image`, and returns timings and errors too; one image gives one row."""
        images, _ = as_list(image)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return await self._run(
            _calls.embed_image(images, normalize=normalize, dtype=dtype), options, self._caller_of(call)
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
        """Embeds a text, or several; see `Client.embed_text`."""
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
        """Embeds like `embed_text`, and returns token counts, timings and errors too; one text, one row."""
        texts = [text] if isinstance(text, str) else list(text)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return await self._run(
            _calls.embed_text(texts, truncate=truncate, normalize=normalize, dtype=dtype),
            options,
            self._caller_of(call),
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
        """Scores an image, or several, against free-form labels; see `Client.classify`."""
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
        """Classifies like `classify`, and returns timings and errors too; one image gives one list."""
        images, _ = as_list(image)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return await self._run(
            _calls.classify(images, labels, prompt_templates=prompt_templates, top_k=top_k),
            options,
            self._caller_of(call),
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

        Leaving early by `aclose()`, or out of `contextlib.aclosing`, cancels the stream at once; a mere
        `break` does when the generator is collected. A plain iterable is read on the event loop.
        """
        if window < 1:
            raise ValueError(f"window is {window}; at least one item must be in flight")
        return self._stream(items, ordered, window, timeout_seconds, self._caller_of(call))

    async def model_info(
        self, *, timeout_seconds: float | None = None, **call: Unpack[CallOptions]
    ) -> ModelInfo:
        """Returns the model being served and the limits that apply to requests."""
        return await self._ask_info(self._terms.deadline(timeout_seconds), self._caller_of(call))

    async def is_ready(self, *, timeout_seconds: float = 5.0) -> bool:
        """Says whether the server can be reached and serves calls."""
        return await self._is_serving(timeout_seconds, wait_for_ready=False)

    async def check_ready(self, *, timeout_seconds: float = 5.0) -> None:
        """Returns if the server can be reached and serves calls, and otherwise says why not.

        Raises:
            UnavailableError: There is no server, or one that is loading, stopping or stalled.
            AlignserveError: The server could not be asked.
        """
        if not await self._ask_health(timeout_seconds, explains=True):
            raise not_serving(self.target)

    async def wait_until_ready(self, timeout_seconds: float = 60.0) -> None:
        """Returns once the server can be reached and serves calls.

        Raises:
            DeadlineExceededError: It did not within the time given.
        """
        deadline = self._terms.clock.monotonic() + timeout_seconds
        remaining = timeout_seconds
        while not await self._is_serving(remaining, wait_for_ready=True):
            remaining = deadline - self._terms.clock.monotonic() - POLL_SECONDS
            if remaining <= 0:
                cause = await self._caller.cause()
                raise not_ready(self.target, timeout_seconds, cause.message if cause else None)
            await self._caller.pause(POLL_SECONDS)

    async def _stream(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        ordered: bool,
        window: int,
        timeout_seconds: float | None,
        caller: AsyncCaller,
    ) -> AsyncGenerator[StreamResult, None]:
        deadline = math.inf if timeout_seconds is None else self._terms.deadline(timeout_seconds)
        info = await self._known_info(self._terms.deadline(timeout_seconds), caller)
        stream = AsyncStream(
            caller,
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

    async def _run(self, call: Call[_Result], options: Options, caller: AsyncCaller) -> _Result:
        end = math.inf
        if options.total_timeout_seconds is not None:
            end = self._terms.deadline(options.total_timeout_seconds)
        needs_info = len(call.items) > 1 or (call.makes_rows and not call.items) or options.returns_errors
        # One item fits into one request or into none, so there is nothing to ask; what is known is heeded.
        info = await self._known_info(self._deadline(options, end), caller) if needs_info else self._info

        async def refreshed() -> Limits:
            return Limits.of(await self._ask_info(self._deadline(options, end), caller))

        job = Job(call, Limits.of(info), caller.terms, options, end)
        method = getattr(self._stub, call.rpc)
        job_run = AsyncJobRun(caller, method, job, refreshed, reads_files=call.reads_files)
        await job_run.run()
        return call.result(job.outcome, info.embedding_dimension if info else 0)

    def _caller_of(self, call: CallOptions) -> AsyncCaller:
        return self._caller.with_terms(self._terms.for_call(**call)) if call else self._caller

    def _deadline(self, options: Options, end: float) -> float:
        return min(self._terms.deadline(options.timeout_seconds), end)

    async def _is_serving(self, timeout_seconds: float, *, wait_for_ready: bool) -> bool:
        try:
            return await self._ask_health(timeout_seconds, wait_for_ready=wait_for_ready)
        except AlignserveError as error:
            return not check_means_not_ready(error)

    async def _ask_health(
        self, timeout_seconds: float, *, wait_for_ready: bool = False, explains: bool = False
    ) -> bool:
        deadline = self._terms.deadline(timeout_seconds)
        once = dataclasses.replace(self._terms.retry, max_attempts=1)  # its answer would change meanwhile
        return await self._caller.call(
            self._check,
            SERVICE_NAME,
            deadline,
            wait_for_ready=wait_for_ready,
            retry=once,
            explains=explains,
        )

    async def _known_info(self, deadline: float, caller: AsyncCaller) -> ModelInfo:
        return self._info or await self._ask_info(deadline, caller)

    async def _ask_info(self, deadline: float, caller: AsyncCaller) -> ModelInfo:
        response = await caller.call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), deadline)
        self._info = _responses.model_info(response)
        return self._info
