"""The asyncio client."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, overload

import grpc
import numpy as np

from alignserve import _calls, _responses
from alignserve._caller_async import AsyncCaller, read_parts
from alignserve._calls import Call
from alignserve._channel import ChannelOptions, channel_options, response_size_metadata
from alignserve._clock import Clock
from alignserve._health import (
    CHECK,
    POLL_SECONDS,
    SERVICE_NAME,
    check_means_not_ready,
    decode_is_serving,
    encode_request,
    not_ready,
)
from alignserve._images import ImageInput, as_list
from alignserve._items import Dtype, Item, StreamResult
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
from alignserve._terms import Metadata, Priority, Terms, client_closed
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
        target: str = "127.0.0.1:50051",
        *,
        timeout_seconds: float | None = 30.0,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        api_key: str | None = None,
        priority: Priority = "interactive",
        retry: RetryPolicy | None = None,
        wait_for_ready: bool = False,
        max_in_flight: int = 4,
        options: ChannelOptions = (),
        _clock: Clock | None = None,
    ) -> None:
        self.target = target
        self._terms = Terms.of(
            timeout_seconds=timeout_seconds,
            metadata=[*metadata, *response_size_metadata(options)],
            api_key=api_key,
            priority=priority,
            retry=retry,
            wait_for_ready=wait_for_ready,
            max_in_flight=max_in_flight,
            clock=_clock,
        )
        self._caller = AsyncCaller(self._terms)
        channel_args = channel_options(self._terms.retry, options)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, channel_args)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, channel_args)
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

    async def embed_image(
        self,
        image: ImageInput | Iterable[ImageInput],
        *,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
    ) -> EmbeddingArray:
        """Embeds an image, or several; see `Client.embed_image`."""
        images, is_one = as_list(image)
        found = await self.embed_image_detailed(
            images, normalize=normalize, dtype=dtype, timeout_seconds=timeout_seconds
        )
        return found.embeddings[0] if is_one else found.embeddings

    async def embed_image_detailed(
        self,
        image: ImageInput | Iterable[ImageInput],
        *,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
    ) -> ImageEmbeddings:
        """Embeds like `embed_image`, and returns timings too; one image gives one row."""
        images, _ = as_list(image)
        if not images:
            return ImageEmbeddings(await self._no_embeddings(dtype, timeout_seconds), ())
        return await self._run(_calls.embed_image(images, normalize=normalize, dtype=dtype), timeout_seconds)

    async def embed_text(
        self,
        text: str | Iterable[str],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
    ) -> EmbeddingArray:
        """Embeds a text, or several; see `Client.embed_text`."""
        found = await self.embed_text_detailed(
            text, truncate=truncate, normalize=normalize, dtype=dtype, timeout_seconds=timeout_seconds
        )
        return found.embeddings[0] if isinstance(text, str) else found.embeddings

    async def embed_text_detailed(
        self,
        text: str | Iterable[str],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
    ) -> TextEmbeddings:
        """Embeds like `embed_text`, and returns token counts and timings too; one text gives one row."""
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            return TextEmbeddings(await self._no_embeddings(dtype, timeout_seconds), (), ())
        call = _calls.embed_text(texts, truncate=truncate, normalize=normalize, dtype=dtype)
        return await self._run(call, timeout_seconds)

    # A path as str is also an iterable of str; the first signature is meant, and the first one is taken.
    @overload
    async def classify(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
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
    ) -> list[list[Classification]]: ...

    async def classify(
        self,
        image: ImageInput | Iterable[ImageInput],
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
    ) -> list[Classification] | list[list[Classification]]:
        """Scores an image, or several, against free-form labels; see `Client.classify`."""
        images, is_one = as_list(image)
        found = await self.classify_detailed(
            images,
            labels,
            prompt_templates=prompt_templates,
            top_k=top_k,
            timeout_seconds=timeout_seconds,
        )
        return found.classifications[0] if is_one else list(found.classifications)

    async def classify_detailed(
        self,
        image: ImageInput | Iterable[ImageInput],
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
    ) -> ImageClassifications:
        """Classifies like `classify`, and returns timings too; one image gives one list."""
        images, _ = as_list(image)
        call = _calls.classify(images, labels, prompt_templates=prompt_templates, top_k=top_k)
        return await self._run(call, timeout_seconds)

    def stream(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        ordered: bool = False,
        window: int = 32,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[StreamResult, None]:
        """Runs any number of items over one stream; see `Client.stream`.

        Leaving early by `aclose()`, or out of `contextlib.aclosing`, cancels the stream at once; a mere
        `break` does when the generator is collected. A plain iterable is read on the event loop.
        """
        if window < 1:
            raise ValueError(f"window is {window}; at least one item must be in flight")
        return self._stream(items, ordered, window, timeout_seconds)

    async def model_info(self, *, timeout_seconds: float | None = None) -> ModelInfo:
        """Returns the model being served and the limits that apply to requests."""
        response = await self._caller.call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), timeout_seconds)
        self._info = _responses.model_info(response)
        return self._info

    async def is_ready(self, *, timeout_seconds: float = 5.0) -> bool:
        """Says whether the server can be reached and serves calls."""
        return await self._is_serving(timeout_seconds, wait_for_ready=False)

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
                raise not_ready(self.target, timeout_seconds)
            await self._caller.pause(POLL_SECONDS)

    async def _stream(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        ordered: bool,
        window: int,
        timeout_seconds: float | None,
    ) -> AsyncGenerator[StreamResult, None]:
        deadline = math.inf if timeout_seconds is None else self._terms.deadline(timeout_seconds)
        info = await self._known_info(timeout_seconds)
        stream = AsyncStream(
            self._caller,
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

    async def _run(self, call: Call[_Result], timeout_seconds: float | None) -> _Result:
        limits = await self._limits(call, timeout_seconds)
        try:
            return await self._send(call, limits, timeout_seconds)
        except AlignserveError as error:
            if not _calls.is_about_limits(error):
                raise
            self._info = None  # as a server with other limits may have come in its place
            fresh = Limits.of(await self._known_info(timeout_seconds))
            if fresh == limits:
                raise
        return await self._send(call, fresh, timeout_seconds)

    async def _send(self, call: Call[_Result], limits: Limits, timeout_seconds: float | None) -> _Result:
        method = getattr(self._stub, call.rpc)
        parts = read_parts(call.parts(limits), in_thread=call.reads_files)
        return call.join(await self._caller.call_parts(method, parts, timeout_seconds))

    async def _is_serving(self, timeout_seconds: float, *, wait_for_ready: bool) -> bool:
        try:
            return await self._caller.call(
                self._check, SERVICE_NAME, timeout_seconds, wait_for_ready=wait_for_ready
            )
        except AlignserveError as error:
            return not check_means_not_ready(error)

    async def _limits(self, call: Call[_Result], timeout_seconds: float | None) -> Limits:
        # One item fits into one request or into none, so there is nothing to ask; what is known is heeded.
        return Limits.of(self._info if len(call.items) <= 1 else await self._known_info(timeout_seconds))

    async def _no_embeddings(self, dtype: Dtype, timeout_seconds: float | None) -> EmbeddingArray:
        info = await self._known_info(timeout_seconds)
        return np.empty((0, info.embedding_dimension), dtype)

    async def _known_info(self, timeout_seconds: float | None) -> ModelInfo:
        return self._info or await self.model_info(timeout_seconds=timeout_seconds)
