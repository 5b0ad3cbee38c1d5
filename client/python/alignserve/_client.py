"""The blocking client."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Literal, TypeVar, Unpack, overload

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
from alignserve._job_sync import JobRun
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
from alignserve._stream import Stream
from alignserve._transport import Transport
from alignserve.errors import AlignserveError
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1.align_service_pb2_grpc import AlignServiceStub

_Result = TypeVar("_Result")


class Client:
    """A connection to an alignserve server. Threads may share it. Close it, or use it in a `with` statement.

    A call that fails raises a subclass of `AlignserveError`; an input that cannot be read raises the original
    exception, such as `FileNotFoundError`. A list too long for one request is split into several.

    Args:
        target: Address of the server: `HOST:PORT`, `HOST` (port 50051), `https://HOST:PORT` with TLS,
            `http://HOST:PORT` without, or any gRPC target. Calls are spread over all addresses that it
            resolves to. Default: ALIGNSERVE_TARGET, or 127.0.0.1:50051.
        timeout_seconds: Deadline of each request, over all its attempts; `None` or infinity for no deadline.
            Streams have no deadline by default.
        credentials: gRPC channel credentials, instead of the next four arguments.
        tls: Whether to encrypt the connection. By default it is encrypted if one of the next three arguments
            or an https:// target is given, or if ALIGNSERVE_TLS or a variable for the next three is set.
        root_certificates: PEM file, or its content, with the certificate authorities to trust for the
            server's certificate. Default: ALIGNSERVE_ROOT_CERTIFICATES, or gRPC's own.
        client_certificate: PEM file, or its content, with this client's certificate, if the server requires
            one. Default: ALIGNSERVE_CLIENT_CERTIFICATE.
        client_key: PEM file, or its content, with the certificate's private key. Default:
            ALIGNSERVE_CLIENT_KEY.
        metadata: Sent with every call, such as `[("x-team", "search")]`.
        api_key: Sent with every call, if the server requires one. Default: ALIGNSERVE_API_KEY. Use it with
            TLS; otherwise anyone on the network path can read it.
        priority: `bulk` for work that can wait: the server runs it when no interactive work is waiting, and
            at a low rate otherwise.
        retry: When to retry failed calls.
        wait_for_ready: Wait for a server that cannot be reached, up to the deadline, instead of failing.
        max_in_flight: Maximum number of requests in flight for one call that is split; fewer are in flight
            while the server is full.
        options: gRPC channel options, which override those set here.

    Raises:
        OSError: A certificate file cannot be read.
        ValueError: An argument or an environment variable is invalid.
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
        self._transport = Transport(
            self._defaults, Probe(connection.target, connection.security, channel_args)
        )
        if (made := connection.security.credentials) is None:
            self._channel = grpc.insecure_channel(self.target, channel_args)
        else:
            self._channel = grpc.secure_channel(self.target, made, channel_args)
        self._stub = AlignServiceStub(self._channel)
        self._check = self._channel.unary_unary(CHECK, encode_request, decode_is_serving)
        self._info: ModelInfo | None = None
        self._streams: set[Stream] = set()  # open streams

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.target!r})"

    def close(self) -> None:
        """Closes the connection; calls and streams in flight fail with `CallCancelledError`."""
        self._transport.closed.set()
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

    # A path as str is also an iterable of str; type checkers take the first signature, which is correct.
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
        """Embeds one image or several.

        Args:
            image: A path, the bytes of an image file, a file opened in binary mode, a Pillow image, or uint8
                pixels of shape (height, width) or (height, width, channels) with 1, 3 or 4 channels; or a
                list of these.
            normalize: Scale embeddings to length 1.
            dtype: Data type of the embeddings. `float16` halves the bytes sent. `int8` quarters them; cosine
                similarities of int8 need no scale (`ImageEmbeddings.int8_scales` has it). `binary` returns
                signs, eight in each uint8, to be compared by Hamming distance.
            timeout_seconds: Deadline of each request, instead of the client's.
            total_timeout_seconds: Deadline of the whole call. By default a list may take as long as it makes
                progress.
            on_error: `return` puts the error of each failed image in its place instead of raising it.
            on_progress: Called as `on_progress(done, total)` when images are done or have failed.

        Returns:
            (embedding_dimension,) for one image, (images, embedding_dimension) for a list. With
            `on_error="return"`, a list of vectors and errors.

        Raises:
            AlignserveError: The call failed; `completed` has the embeddings computed so far, by position.
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
        """Like `embed_image`, but also returns timings and errors; a single image gives one row."""
        images, _ = as_list(image)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return self._run(
            _split_requests.embed_image(images, normalize=normalize, dtype=dtype),
            options,
            self._transport_for(call),
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
        """Embeds one text or several.

        Args:
            text: A text, or a list of texts. None may be blank.
            truncate: Truncate texts longer than `ModelInfo.max_text_tokens`, which otherwise fail.
            normalize: Scale embeddings to length 1.
            dtype: Data type of the embeddings, as for `embed_image`.
            timeout_seconds: Deadline of each request, instead of the client's.
            total_timeout_seconds: Deadline of the whole call. By default a list may take as long as it makes
                progress.
            on_error: `return` puts the error of each failed text in its place instead of raising it.
            on_progress: Called as `on_progress(done, total)` when texts are done or have failed.

        Returns:
            (embedding_dimension,) for one text, (texts, embedding_dimension) for a list. With
            `on_error="return"`, a list of vectors and errors.

        Raises:
            AlignserveError: The call failed; `completed` has the embeddings computed so far, by position.
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
        """Like `embed_text`, but also returns token counts, timings and errors; one text gives one row."""
        texts = [text] if isinstance(text, str) else list(text)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return self._run(
            _split_requests.embed_text(texts, truncate=truncate, normalize=normalize, dtype=dtype),
            options,
            self._transport_for(call),
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
        """Scores one image or several against labels that the model was not trained on.

        Args:
            image: As for `embed_image`.
            labels: Candidate labels. Repeating a set of labels costs the server almost nothing.
            prompt_templates: Prompts with one `{label}` each, such as `a photo of a {label}`; several are
                averaged. By default labels are embedded as they are.
            top_k: Maximum number of labels to return; 0 for all.
            timeout_seconds: Deadline of each request, instead of the client's.
            total_timeout_seconds: Deadline of the whole call. By default a list may take as long as it makes
                progress.
            on_error: `return` puts the error of each failed image in its place instead of raising it.
            on_progress: Called as `on_progress(done, total)` when images are done or have failed.

        Returns:
            The labels, best first; for a list of images, one such list for each. With `on_error="return"`,
            the list also contains errors.

        Raises:
            AlignserveError: The call failed; `completed` has the results computed so far, by position.
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
        """Like `classify`, but also returns timings and errors; a single image gives one list."""
        images, _ = as_list(image)
        options = Options(
            timeout_seconds=timeout_seconds,
            total_timeout_seconds=total_timeout_seconds,
            on_error=on_error,
            on_progress=on_progress,
        )
        return self._run(
            _split_requests.classify(images, labels, prompt_templates=prompt_templates, top_k=top_k),
            options,
            self._transport_for(call),
        )

    # A path and a text as str are also iterables of str, as above.
    @overload
    def compare(  # type: ignore[overload-overlap]
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
    def compare(
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
    def compare(  # type: ignore[overload-overlap]
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
    def compare(
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

    def compare(
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
        """Compares an image with a text, or each image of a list with the text at its place.

        It computes the same as the two embeddings' dot product, and sends one number instead of both. To
        compare an image with many texts, `classify` is cheaper: it sends the image once.

        Args:
            image: As for `embed_image`.
            text: A text, or a list of as many texts as images. None may be blank.
            truncate: Truncate texts longer than `ModelInfo.max_text_tokens`, which otherwise fail.
            timeout_seconds: Deadline of each request, instead of the client's.
            total_timeout_seconds: Deadline of the whole call. By default a list may take as long as it makes
                progress.
            on_error: `return` puts the error of each failed pair in its place instead of raising it.
            on_progress: Called as `on_progress(done, total)` when pairs are done or have failed.

        Returns:
            A comparison, or a list of them. With `on_error="return"`, the list also contains errors.

        Raises:
            AlignserveError: The call failed; `completed` has the comparisons computed so far, by position.
            ValueError: The lists have different lengths.
        """
        images, is_one = as_list(image)
        found = self.compare_detailed(
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

    def compare_detailed(
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
        return self._run(
            _split_requests.compare(images, texts, truncate=truncate), options, self._transport_for(call)
        )

    @overload
    def embed_query(
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
    def embed_query(
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
    def embed_query(  # type: ignore[overload-overlap]
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
    def embed_query(
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

    def embed_query(
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
        """Embeds a composed query, such as an image plus a text minus another, or several queries.

            client.embed_query([Path("bag.jpg"), ("red", 0.8), ("leather", -0.5)])

        Its embedding is the weighted sum of its terms' embeddings, each of length 1. Search the embeddings of
        images or texts with it.

        Args:
            query: A list of terms, or a list of such lists. A term is a text, an image as for `embed_image`
                (but its path as `Path`, since a `str` is a text), a tuple of a text or image and its weight,
                or a `QueryTerm`.
            truncate: Truncate texts longer than `ModelInfo.max_text_tokens`, which otherwise fail.
            normalize: Scale embeddings to length 1.
            dtype: Data type of the embeddings, as for `embed_image`.
            timeout_seconds: Deadline of each request, instead of the client's.
            total_timeout_seconds: Deadline of the whole call. By default a list may take as long as it makes
                progress.
            on_error: `return` puts the error of each failed query in its place instead of raising it.
            on_progress: Called as `on_progress(done, total)` when queries are done or have failed.

        Returns:
            (embedding_dimension,) for one query, (queries, embedding_dimension) for a list. With
            `on_error="return"`, a list of vectors and errors.

        Raises:
            AlignserveError: The call failed, for example because the terms cancel out (`QUERY_INVALID`);
                `completed` has the embeddings computed so far, by position.
            TypeError: A term is of another type.
        """
        queries, is_one = as_queries(query)
        found = self.embed_query_detailed(
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

    def embed_query_detailed(
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
        return self._run(
            _split_requests.embed_query(queries, truncate=truncate, normalize=normalize, dtype=dtype),
            options,
            self._transport_for(call),
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

        An item that fails yields a result with its `error`, and the stream continues. A stream that breaks is
        opened again, and the unanswered items are sent again; none is yielded twice.

        Args:
            items: Read in a thread, at most `window` items ahead of the results yielded.
            ordered: Yield results in the order of the items, rather than as they become ready.
            window: Maximum number of items read but not yet yielded. The server has its own limit,
                `ModelInfo.max_stream_in_flight`.
            timeout_seconds: Deadline of the whole stream, including pauses. By default it runs until the
                items end.

        Yields:
            A result for every item. Leaving early, by `close()` or `break`, cancels the stream.

        Raises:
            AlignserveError: The stream broke and could not be opened again, or ran out of time.
            TypeError: `items` yielded something other than an item, or an option has the wrong type.
            ValueError: An option has an unknown value.
        """
        if window < 1:
            raise ValueError(f"window is {window}; at least one item must be in flight")
        return self._stream(items, ordered, window, timeout_seconds, self._transport_for(call))

    def model_info(self, *, timeout_seconds: float | None = None, **call: Unpack[CallOptions]) -> ModelInfo:
        """Returns the model being served and the limits that apply to requests."""
        return self._ask_info(self._defaults.deadline(timeout_seconds), self._transport_for(call))

    def is_ready(self, *, timeout_seconds: float = 5.0) -> bool:
        """Returns whether the server can be reached and is ready for calls."""
        return self._is_serving(timeout_seconds, wait_for_ready=False)

    def check_ready(self, *, timeout_seconds: float = 5.0) -> None:
        """Returns if the server is ready for calls, and otherwise raises an error that says why not.

        Raises:
            UnavailableError: The server cannot be reached, or is loading, stopping or stalled.
            AlignserveError: The health check failed for another reason.
        """
        if not self._ask_health(timeout_seconds, explains=True):
            raise not_serving(self.target)

    def wait_until_ready(self, timeout_seconds: float = 60.0) -> None:
        """Waits until the server can be reached and is ready for calls.

        Raises:
            DeadlineExceededError: The server was not ready in time.
        """
        deadline = self._defaults.clock.monotonic() + timeout_seconds
        remaining = timeout_seconds
        while not self._is_serving(remaining, wait_for_ready=True):
            remaining = deadline - self._defaults.clock.monotonic() - POLL_SECONDS
            if remaining <= 0:
                cause = self._transport.cause()
                raise not_ready(self.target, timeout_seconds, cause.message if cause else None)
            self._transport.pause(POLL_SECONDS)

    def _stream(
        self,
        items: Iterable[Item],
        ordered: bool,
        window: int,
        timeout_seconds: float | None,
        transport: Transport,
    ) -> Generator[StreamResult, None, None]:
        deadline = math.inf if timeout_seconds is None else self._defaults.deadline(timeout_seconds)
        info = self._known_info(self._defaults.deadline(timeout_seconds), transport)
        stream = Stream(
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
            yield from stream.results()
        finally:
            self._streams.discard(stream)

    def _run(self, call: SplitRequest[_Result], options: Options, transport: Transport) -> _Result:
        end = math.inf
        if options.total_timeout_seconds is not None:
            end = self._defaults.deadline(options.total_timeout_seconds)
        needs_info = len(call.items) > 1 or (call.makes_rows and not call.items) or options.returns_errors
        # A single item either fits into one request or fails, so the limits are used only if already known.
        info = self._known_info(self._deadline(options, end), transport) if needs_info else self._info

        def refreshed() -> Limits:
            return Limits.of(self._ask_info(self._deadline(options, end), transport))

        job = Job(call, Limits.of(info), transport.defaults, options, end)
        job_run = JobRun(transport, getattr(self._stub, call.rpc), job, refreshed)
        job_run.run()
        return call.result(job.outcome, info.embedding_dimension if info else 0)

    def _transport_for(self, call: CallOptions) -> Transport:
        return self._transport.with_defaults(self._defaults.for_call(**call)) if call else self._transport

    def _deadline(self, options: Options, end: float) -> float:
        return min(self._defaults.deadline(options.timeout_seconds), end)

    def _is_serving(self, timeout_seconds: float, *, wait_for_ready: bool) -> bool:
        try:
            return self._ask_health(timeout_seconds, wait_for_ready=wait_for_ready)
        except AlignserveError as error:
            return not check_means_not_ready(error)

    def _ask_health(
        self, timeout_seconds: float, *, wait_for_ready: bool = False, explains: bool = False
    ) -> bool:
        deadline = self._defaults.deadline(timeout_seconds)
        once = dataclasses.replace(
            self._defaults.retry, max_attempts=1
        )  # the answer could change between attempts
        return self._transport.call(
            self._check,
            SERVICE_NAME,
            deadline,
            wait_for_ready=wait_for_ready,
            retry=once,
            explains=explains,
        )

    def _known_info(self, deadline: float, transport: Transport) -> ModelInfo:
        return self._info or self._ask_info(deadline, transport)

    def _ask_info(self, deadline: float, transport: Transport) -> ModelInfo:
        response = transport.call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), deadline)
        self._info = _responses.model_info(response)
        return self._info
