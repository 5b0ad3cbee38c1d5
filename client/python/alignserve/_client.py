"""The blocking client."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Literal, TypeVar, Unpack, overload

import grpc

from alignserve import _calls, _responses
from alignserve._caller import Caller
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
from alignserve._job_sync import JobRun
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
from alignserve._stream import Stream
from alignserve._terms import CallOptions, Metadata, Priority, Terms, client_closed
from alignserve.errors import AlignserveError
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1.align_service_pb2_grpc import AlignServiceStub

_Result = TypeVar("_Result")


class Client:
    """A connection to an alignserve server. Threads may share it; close it, or use it in a `with` statement.

    A call that fails raises a subclass of `AlignserveError`; an input that cannot be read raises what reading
    it raises, such as `FileNotFoundError`. A list too long for one request is split into several.

    Args:
        target: Address of the server: `HOST:PORT`, `HOST` (port 50051), `https://HOST:PORT` with TLS,
            `http://HOST:PORT` without, or any gRPC target. Calls are spread over all the addresses that it
            stands for. Without, that of ALIGNSERVE_TARGET, or 127.0.0.1:50051.
        timeout_seconds: Deadline of each request, over all its attempts; `None` or infinity is none. Streams
            have none of their own.
        credentials: TLS as gRPC takes it, instead of the four arguments that follow.
        tls: Whether the connection is encrypted. Without, it is if one of the next three or an https://
            target is given, or else if ALIGNSERVE_TLS says so or a variable of the next three is set.
        root_certificates: PEM file, or its bytes, of the authorities that the server's certificate may come
            from. Without, that of ALIGNSERVE_ROOT_CERTIFICATES, or those that gRPC knows.
        client_certificate: PEM file, or its bytes, with this client's certificate, where the server asks for
            one. Without, that of ALIGNSERVE_CLIENT_CERTIFICATE.
        client_key: PEM file, or its bytes, with its private key. Without, that of ALIGNSERVE_CLIENT_KEY.
        metadata: Sent with every call, such as `[("x-team", "search")]`.
        api_key: Sent with every call, where the server asks for one. Without, that of ALIGNSERVE_API_KEY. Use
            it with TLS, or anybody on the way can read it.
        priority: `bulk` for work that can wait: the server takes it when nobody else's waits, and a little
            when somebody's does.
        retry: When failed calls are repeated.
        wait_for_ready: Waits for a server that cannot be reached, up to the deadline, rather than failing.
        max_in_flight: Maximum number of requests in flight for one call that is split; there are fewer
            while the server is full.
        options: gRPC channel options, which win over those set here.

    Raises:
        OSError: A file of certificates cannot be read.
        ValueError: An argument or a variable of the environment cannot be used.
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
        self._caller = Caller(self._terms, Probe(connection.target, connection.security, channel_args))
        if (made := connection.security.credentials) is None:
            self._channel = grpc.insecure_channel(self.target, channel_args)
        else:
            self._channel = grpc.secure_channel(self.target, made, channel_args)
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

    @overload
    def embed_image(
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
    def embed_image(  # type: ignore[overload-overlap]
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
    def embed_image(
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

    def embed_image(
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
        """Embeds an image, or several.

        Args:
            image: A path, the bytes of an image file, a file opened in binary mode, a Pillow image, or uint8
                pixels of shape (height, width) or (height, width, channels) with 1, 3 or 4 channels; or a
                list of such.
            normalize: Scales embeddings to length 1.
            dtype: Data type of the embeddings; `float16` halves the bytes that travel.
            timeout_seconds: Of each request, instead of the client's.
            total_timeout_seconds: Of the whole call. Without, a list lasts as long as it gets on.
            on_error: `return` gives, in the place of each image that failed, its error instead of raising it.
            on_progress: Called as `on_progress(done, total)` after images were embedded or failed.

        Returns:
            (embedding_dimension,) for one image, (images, embedding_dimension) for a list. With
            `on_error="return"`, a list of vectors and errors.

        Raises:
            AlignserveError: `completed` has the embeddings of a list that were there already, by position.
        """
        images, is_one = as_list(image)
        found = self.embed_image_detailed(
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

    def embed_image_detailed(
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
        return self._run(
            _calls.embed_image(images, normalize=normalize, dtype=dtype), options, self._caller_of(call)
        )

    @overload
    def embed_text(
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
    def embed_text(  # type: ignore[overload-overlap]
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
    def embed_text(
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

    def embed_text(
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
        """Embeds a text, or several.

        Args:
            text: A text, or a list of texts. None may be blank.
            truncate: Cuts texts longer than `ModelInfo.max_text_tokens`, which otherwise fail.
            normalize: Scales embeddings to length 1.
            dtype: Data type of the embeddings; `float16` halves the bytes that travel.
            timeout_seconds: Of each request, instead of the client's.
            total_timeout_seconds: Of the whole call. Without, a list lasts as long as it gets on.
            on_error: `return` gives, in the place of each text that failed, its error instead of raising it.
            on_progress: Called as `on_progress(done, total)` after texts were embedded or failed.

        Returns:
            (embedding_dimension,) for one text, (texts, embedding_dimension) for a list. With
            `on_error="return"`, a list of vectors and errors.

        Raises:
            AlignserveError: `completed` has the embeddings of a list that were there already, by position.
        """
        found = self.embed_text_detailed(
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

    def embed_text_detailed(
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
        return self._run(
            _calls.embed_text(texts, truncate=truncate, normalize=normalize, dtype=dtype),
            options,
            self._caller_of(call),
        )

    # As above.
    @overload
    def classify(  # type: ignore[overload-overlap]
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
    def classify(
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
    def classify(  # type: ignore[overload-overlap]
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
    def classify(
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

    def classify(
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
        """Scores an image, or several, against labels that the model was never trained on.

        Args:
            image: As for `embed_image`.
            labels: Candidate labels. Repeating a set of labels costs the server next to nothing.
            prompt_templates: Prompts with one `{label}` each, such as `a photo of a {label}`; several are
                averaged. Without, labels are embedded as they are.
            top_k: Maximum number of labels to return; 0 is all.
            timeout_seconds: Of each request, instead of the client's.
            total_timeout_seconds: Of the whole call. Without, a list lasts as long as it gets on.
            on_error: `return` gives, in the place of each image that failed, its error instead of raising it.
            on_progress: Called as `on_progress(done, total)` after images were classified or failed.

        Returns:
            The labels, best first; for a list of images, one such list for each. With `on_error="return"`,
            errors among them.

        Raises:
            AlignserveError: `completed` has the results of a list that were there already, by position.
        """
        images, is_one = as_list(image)
        found = self.classify_detailed(
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

    def classify_detailed(
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
        return self._run(
            _calls.classify(images, labels, prompt_templates=prompt_templates, top_k=top_k),
            options,
            self._caller_of(call),
        )

    def stream(
        self,
        items: Iterable[Item],
        *,
        ordered: bool = False,
        window: int = 32,
        timeout_seconds: float | None = None,
        **call: Unpack[CallOptions],
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
        return self._stream(items, ordered, window, timeout_seconds, self._caller_of(call))

    def model_info(self, *, timeout_seconds: float | None = None, **call: Unpack[CallOptions]) -> ModelInfo:
        """Returns the model being served and the limits that apply to requests."""
        return self._ask_info(self._terms.deadline(timeout_seconds), self._caller_of(call))

    def is_ready(self, *, timeout_seconds: float = 5.0) -> bool:
        """Says whether the server can be reached and serves calls."""
        return self._is_serving(timeout_seconds, wait_for_ready=False)

    def check_ready(self, *, timeout_seconds: float = 5.0) -> None:
        """Returns if the server can be reached and serves calls, and otherwise says why not.

        Raises:
            UnavailableError: There is no server, or one that is loading, stopping or stalled.
            AlignserveError: The server could not be asked.
        """
        if not self._ask_health(timeout_seconds, explains=True):
            raise not_serving(self.target)

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
                cause = self._caller.cause()
                raise not_ready(self.target, timeout_seconds, cause.message if cause else None)
            self._caller.pause(POLL_SECONDS)

    def _stream(
        self,
        items: Iterable[Item],
        ordered: bool,
        window: int,
        timeout_seconds: float | None,
        caller: Caller,
    ) -> Generator[StreamResult, None, None]:
        deadline = math.inf if timeout_seconds is None else self._terms.deadline(timeout_seconds)
        info = self._known_info(self._terms.deadline(timeout_seconds), caller)
        stream = Stream(
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
            yield from stream.results()
        finally:
            self._streams.discard(stream)

    def _run(self, call: Call[_Result], options: Options, caller: Caller) -> _Result:
        end = math.inf
        if options.total_timeout_seconds is not None:
            end = self._terms.deadline(options.total_timeout_seconds)
        needs_info = len(call.items) > 1 or (call.makes_rows and not call.items) or options.returns_errors
        # One item fits into one request or into none, so there is nothing to ask; what is known is heeded.
        info = self._known_info(self._deadline(options, end), caller) if needs_info else self._info

        def refreshed() -> Limits:
            return Limits.of(self._ask_info(self._deadline(options, end), caller))

        job = Job(call, Limits.of(info), caller.terms, options, end)
        job_run = JobRun(caller, getattr(self._stub, call.rpc), job, refreshed)
        job_run.run()
        return call.result(job.outcome, info.embedding_dimension if info else 0)

    def _caller_of(self, call: CallOptions) -> Caller:
        return self._caller.with_terms(self._terms.for_call(**call)) if call else self._caller

    def _deadline(self, options: Options, end: float) -> float:
        return min(self._terms.deadline(options.timeout_seconds), end)

    def _is_serving(self, timeout_seconds: float, *, wait_for_ready: bool) -> bool:
        try:
            return self._ask_health(timeout_seconds, wait_for_ready=wait_for_ready)
        except AlignserveError as error:
            return not check_means_not_ready(error)

    def _ask_health(
        self, timeout_seconds: float, *, wait_for_ready: bool = False, explains: bool = False
    ) -> bool:
        deadline = self._terms.deadline(timeout_seconds)
        once = dataclasses.replace(self._terms.retry, max_attempts=1)  # its answer would change meanwhile
        return self._caller.call(
            self._check,
            SERVICE_NAME,
            deadline,
            wait_for_ready=wait_for_ready,
            retry=once,
            explains=explains,
        )

    def _known_info(self, deadline: float, caller: Caller) -> ModelInfo:
        return self._info or self._ask_info(deadline, caller)

    def _ask_info(self, deadline: float, caller: Caller) -> ModelInfo:
        response = caller.call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), deadline)
        self._info = _responses.model_info(response)
        return self._info
