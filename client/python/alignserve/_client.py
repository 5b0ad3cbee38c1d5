"""The blocking client."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import TypeVar, overload

import grpc
import numpy as np

from alignserve import _calls, _responses
from alignserve._caller import Caller
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
from alignserve._stream import Stream
from alignserve._terms import Metadata, Priority, Terms, client_closed
from alignserve.errors import AlignserveError
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1.align_service_pb2_grpc import AlignServiceStub

_Result = TypeVar("_Result")


class Client:
    """A connection to an alignserve server. Threads may share it; close it, or use it in a `with` statement.

    A call that fails raises a subclass of `AlignserveError`; an input that cannot be read raises what reading
    it raises, such as `FileNotFoundError`. A list too long for one request is split into several.

    Args:
        target: Address of the server, `HOST:PORT` or any gRPC target. Calls are spread over all the addresses
            that it stands for.
        timeout_seconds: Deadline of each request, over all its attempts; `None` or infinity is none. Streams
            have none of their own.
        credentials: TLS, such as `grpc.ssl_channel_credentials()`. Without, the connection is not encrypted.
        metadata: Sent with every call, such as `[("x-team", "search")]`.
        api_key: Sent with every call, where the server asks for one. Use it with `credentials`, or anybody on
            the way can read it.
        priority: `bulk` for work that can wait: the server takes it when nobody else's waits, and a little
            when somebody's does.
        retry: When failed calls are repeated.
        wait_for_ready: Waits for a server that cannot be reached, up to the deadline, rather than failing.
        max_in_flight: Most requests in flight for one call that is split.
        options: gRPC channel options, which win over those set here.
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
        self._caller = Caller(self._terms)
        channel_args = channel_options(self._terms.retry, options)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, channel_args)
        else:
            self._channel = grpc.secure_channel(target, credentials, channel_args)
        self._stub = AlignServiceStub(self._channel)
        self._check = self._channel.unary_unary(CHECK, encode_request, decode_is_serving)
        self._info: ModelInfo | None = None
        self._streams: set[Stream] = set()  # those that are open

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.target!r})"

    def close(self) -> None:
        """Closes the connection; calls in flight and streams end with `CallCancelledError`."""
        self._caller.closed.set()
        for stream in list(self._streams):
            stream.fail(client_closed())
        self._channel.close()

    def embed_image(
        self,
        image: ImageInput | Iterable[ImageInput],
        *,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
    ) -> EmbeddingArray:
        """Embeds an image, or several.

        Args:
            image: A path, the bytes of an image file, a file opened in binary mode, a Pillow image, or uint8
                pixels of shape (height, width) or (height, width, channels) with 1, 3 or 4 channels; or a
                list of such.
            normalize: Scales embeddings to length 1.
            dtype: Data type of the embeddings; `float16` halves the bytes that travel.
            timeout_seconds: Instead of the client's.

        Returns:
            (embedding_dimension,) for one image, (images, embedding_dimension) for a list.
        """
        images, is_one = as_list(image)
        found = self.embed_image_detailed(
            images, normalize=normalize, dtype=dtype, timeout_seconds=timeout_seconds
        )
        return found.embeddings[0] if is_one else found.embeddings

    def embed_image_detailed(
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
            return ImageEmbeddings(self._no_embeddings(dtype, timeout_seconds), ())
        return self._run(_calls.embed_image(images, normalize=normalize, dtype=dtype), timeout_seconds)

    def embed_text(
        self,
        text: str | Iterable[str],
        *,
        truncate: bool = False,
        normalize: bool = True,
        dtype: Dtype = "float32",
        timeout_seconds: float | None = None,
    ) -> EmbeddingArray:
        """Embeds a text, or several.

        Args:
            text: A text, or a list of texts. None may be blank.
            truncate: Cuts texts longer than `ModelInfo.max_text_tokens`, which otherwise fail.
            normalize: Scales embeddings to length 1.
            dtype: Data type of the embeddings; `float16` halves the bytes that travel.
            timeout_seconds: Instead of the client's.

        Returns:
            (embedding_dimension,) for one text, (texts, embedding_dimension) for a list.
        """
        found = self.embed_text_detailed(
            text, truncate=truncate, normalize=normalize, dtype=dtype, timeout_seconds=timeout_seconds
        )
        return found.embeddings[0] if isinstance(text, str) else found.embeddings

    def embed_text_detailed(
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
            return TextEmbeddings(self._no_embeddings(dtype, timeout_seconds), (), ())
        call = _calls.embed_text(texts, truncate=truncate, normalize=normalize, dtype=dtype)
        return self._run(call, timeout_seconds)

    # A path as str is also an iterable of str; the first signature is meant, and the first one is taken.
    @overload
    def classify(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
    ) -> list[Classification]: ...

    @overload
    def classify(
        self,
        image: Iterable[ImageInput],
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
    ) -> list[list[Classification]]: ...

    def classify(
        self,
        image: ImageInput | Iterable[ImageInput],
        labels: Sequence[str],
        *,
        prompt_templates: Sequence[str] = (),
        top_k: int = 0,
        timeout_seconds: float | None = None,
    ) -> list[Classification] | list[list[Classification]]:
        """Scores an image, or several, against labels that the model was never trained on.

        Args:
            image: As for `embed_image`.
            labels: Candidate labels. Repeating a set of labels costs the server next to nothing.
            prompt_templates: Prompts with one `{label}` each, such as `a photo of a {label}`; several are
                averaged. Without, labels are embedded as they are.
            top_k: Most labels to return; 0 is all.
            timeout_seconds: Instead of the client's.

        Returns:
            The labels, best first; for a list of images, one such list for each.
        """
        images, is_one = as_list(image)
        found = self.classify_detailed(
            images,
            labels,
            prompt_templates=prompt_templates,
            top_k=top_k,
            timeout_seconds=timeout_seconds,
        )
        return found.classifications[0] if is_one else list(found.classifications)

    def classify_detailed(
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
        return self._run(call, timeout_seconds)

    def stream(
        self,
        items: Iterable[Item],
        *,
        ordered: bool = False,
        window: int = 32,
        timeout_seconds: float | None = None,
    ) -> Generator[StreamResult, None, None]:
        """Runs any number of items over one stream, with a bounded number of them in flight.

        An item that fails yields a result with its `error` and the stream goes on. A stream that breaks is
        opened again, and the items without an answer are sent again; none is yielded twice.

        Args:
            items: Read in a thread, never more than `window` ahead of what was yielded.
            ordered: Yields in the order of the items, rather than as they are ready.
            window: Most items that are read and not yet yielded. The server has a limit of its own,
                `ModelInfo.max_stream_in_flight`.
            timeout_seconds: Deadline of the whole stream, pauses included. Without, it runs as long as the
                items last.

        Yields:
            A result for every item. Leaving early, by `close()` or `break`, cancels the stream.

        Raises:
            AlignserveError: The stream broke and could not be opened again, or ran out of time.
            TypeError: What `items` gave is no item, or has an option of the wrong type.
            ValueError: An option has an unknown value.
        """
        if window < 1:
            raise ValueError(f"window is {window}; at least one item must be in flight")
        return self._stream(items, ordered, window, timeout_seconds)

    def model_info(self, *, timeout_seconds: float | None = None) -> ModelInfo:
        """Returns the model being served and the limits that apply to requests."""
        response = self._caller.call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), timeout_seconds)
        self._info = _responses.model_info(response)
        return self._info

    def is_ready(self, *, timeout_seconds: float = 5.0) -> bool:
        """Says whether the server can be reached and serves calls."""
        return self._is_serving(timeout_seconds, wait_for_ready=False)

    def wait_until_ready(self, timeout_seconds: float = 60.0) -> None:
        """Returns once the server can be reached and serves calls.

        Raises:
            DeadlineExceededError: It did not within the time given.
        """
        deadline = self._terms.clock.monotonic() + timeout_seconds
        remaining = timeout_seconds
        while not self._is_serving(remaining, wait_for_ready=True):
            remaining = deadline - self._terms.clock.monotonic() - POLL_SECONDS
            if remaining <= 0:
                raise not_ready(self.target, timeout_seconds)
            self._caller.pause(POLL_SECONDS)

    def _stream(
        self, items: Iterable[Item], ordered: bool, window: int, timeout_seconds: float | None
    ) -> Generator[StreamResult, None, None]:
        deadline = math.inf if timeout_seconds is None else self._terms.deadline(timeout_seconds)
        info = self._known_info(timeout_seconds)
        stream = Stream(
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
            yield from stream.results()
        finally:
            self._streams.discard(stream)

    def _run(self, call: Call[_Result], timeout_seconds: float | None) -> _Result:
        limits = self._limits(call, timeout_seconds)
        try:
            return self._send(call, limits, timeout_seconds)
        except AlignserveError as error:
            if not _calls.is_about_limits(error):
                raise
            self._info = None  # as a server with other limits may have come in its place
            fresh = Limits.of(self._known_info(timeout_seconds))
            if fresh == limits:
                raise
        return self._send(call, fresh, timeout_seconds)

    def _send(self, call: Call[_Result], limits: Limits, timeout_seconds: float | None) -> _Result:
        method = getattr(self._stub, call.rpc)
        return call.join(self._caller.call_parts(method, call.parts(limits), timeout_seconds))

    def _is_serving(self, timeout_seconds: float, *, wait_for_ready: bool) -> bool:
        try:
            return self._caller.call(
                self._check, SERVICE_NAME, timeout_seconds, wait_for_ready=wait_for_ready
            )
        except AlignserveError as error:
            return not check_means_not_ready(error)

    def _limits(self, call: Call[_Result], timeout_seconds: float | None) -> Limits:
        # One item fits into one request or into none, so there is nothing to ask; what is known is heeded.
        return Limits.of(self._info if len(call.items) <= 1 else self._known_info(timeout_seconds))

    def _no_embeddings(self, dtype: Dtype, timeout_seconds: float | None) -> EmbeddingArray:
        info = self._known_info(timeout_seconds)
        return np.empty((0, info.embedding_dimension), dtype)

    def _known_info(self, timeout_seconds: float | None) -> ModelInfo:
        return self._info or self.model_info(timeout_seconds=timeout_seconds)
