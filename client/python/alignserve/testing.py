"""A fake server for testing code that uses alignserve: real gRPC, no model.

Embeddings are derived from a hash of the input: the same input always gives the same vector, and different
inputs give unrelated vectors.

    with FakeServer() as server, Client(server.target) as client:
        assert client.embed_text("a cat").shape == (server.embedding_dimension,)

Tests in other languages start it as a process and control it by lines of JSON:

    python -m alignserve.testing --help
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent import futures
from types import TracebackType
from typing import TypeAlias

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignserve._environment import Pem, read_pem
from alignserve._fake.script import ScriptedFailure
from alignserve._fake.servicer import FakeServicer, health_handler
from alignserve._fake.state import FakeState, ReceivedCall, pixels_key
from alignserve._pixels import rgb_pixels
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

__all__ = ["Content", "FakeServer", "ReceivedCall"]

Content: TypeAlias = str | bytes | NDArray[np.uint8]
"""A text, the bytes of an image file, or the uint8 pixels of an image."""

_WORKERS = 1000  # every stream and every held call occupies one; threads are created on demand


# Ports of this process's fake servers. gRPC's channels to one address share its connection, and its pauses
# after failures, so a client that was never closed could make the clients of a later server there fail.
_bound_ports: set[int] = set()


class FakeServer:
    """A server on a free local port, for the duration of a `with` statement.

    Args:
        embedding_dimension: Number of elements in an embedding.
        max_client_batch_size: Maximum number of images, texts, pairs or terms in one request; clients split
            longer lists.
        max_text_tokens: Maximum length of a text, which has two tokens more than words. The word `[UNK]` is
            unknown.
        max_request_bytes: Maximum size of a request, as reported to clients.
        port: 0 chooses a free port that no other fake server of the process had.
        api_keys: If not empty, calls need one of these keys.
        image_formats: Formats reported to clients.
        checks_images: Refuse images that do not start like one of these formats, as a real server does. By
            default any bytes are an image.
        tls_certificate: PEM file, or its content, with the server's certificate; turns TLS on.
        tls_key: PEM file, or its content, with the certificate's private key.
        tls_client_ca: PEM file, or its content, with the certificate authorities of clients; clients then
            need a certificate.
        max_connection_age_seconds: Age at which connections are closed, in good order (GOAWAY); `None` for
            never.

    Attributes:
        target: The address, for `Client(target)`.
        embedding_dimension: As given.

    Raises:
        OSError: A certificate file cannot be read.
        ValueError: Only one of `tls_certificate` and `tls_key` is given.
    """

    def __init__(
        self,
        *,
        embedding_dimension: int = 64,
        max_client_batch_size: int = 64,
        max_text_tokens: int = 64,
        max_request_bytes: int = 16 << 20,
        port: int = 0,
        api_keys: Sequence[str] = (),
        image_formats: Sequence[str] = ("JPEG", "PNG"),
        checks_images: bool = False,
        tls_certificate: Pem | None = None,
        tls_key: Pem | None = None,
        tls_client_ca: Pem | None = None,
        max_connection_age_seconds: float | None = None,
    ) -> None:
        self.embedding_dimension = embedding_dimension
        info = pb.GetModelInfoResponse(
            model_id="fake",
            fingerprint=f"fake-{embedding_dimension}",
            runtime="fake",
            dtype="float32",
            device="cpu",
            embedding_dimension=embedding_dimension,
            temperature=0.05,
            max_text_tokens=max_text_tokens,
            max_client_batch_size=max_client_batch_size,
            max_labels=1000,
            max_prompt_templates=100,
            max_image_bytes=10 << 20,
            max_image_pixels=25_000_000,
            max_text_bytes=32 << 10,
            max_request_bytes=max_request_bytes,
            max_stream_in_flight=32,
            image_formats=image_formats,
            server_version="fake",
            min_cosine_similarity=1.0,
            max_response_bytes=16 << 20,
        )
        self._state = FakeState(info, api_keys=frozenset(api_keys), checks_images=checks_images)
        self.release()
        self._pool = futures.ThreadPoolExecutor(_WORKERS, "alignserve-fake")
        self._credentials = _credentials(tls_certificate, tls_key, tls_client_ca)
        self._options = _channel_options(max_request_bytes, max_connection_age_seconds)
        self._server, self._port = self._bound_server(port)
        self.target = f"127.0.0.1:{self._port}"

    def __enter__(self) -> FakeServer:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def received(self) -> list[ReceivedCall]:
        """Returns every message received, in order."""
        return self._state.received

    def wait_for_received(self, count: int, timeout_seconds: float = 10.0) -> None:
        """Waits until `count` messages have arrived in total.

        Raises:
            TimeoutError: They did not arrive in time.
        """
        with self._state.arrived:
            if not self._state.arrived.wait_for(lambda: len(self.received) >= count, timeout_seconds):
                raise TimeoutError(f"{len(self.received)} of {count} messages in {timeout_seconds:g} s")

    def stop(self) -> None:
        """Stops immediately: calls in flight break, and new calls find no server."""
        self._state.stopped.set()
        self._state.gate.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def restart(self) -> None:
        """Breaks all connections and calls in flight, and listens on the same port again."""
        self._server.stop(None).wait()
        self._server, _ = self._bound_server(self._port)
        self._server.start()

    def reset(self) -> None:
        """Forgets what was scripted, set and received, and releases held answers."""
        self._state.script.clear()
        self._state.vectors.clear()
        self._state.scores.clear()
        self._state.received.clear()
        self.reverse_answers(0)
        self.set_ready(True)
        self.release()

    def fail_next(
        self,
        code: grpc.StatusCode,
        reason: str = "",
        *,
        message: str = "failure injected by the test",
        retry_delay_seconds: float | None = None,
        error_id: str = "",
        pushback_ms: int | None = None,
        times: int = 1,
        method: str | None = None,
    ) -> None:
        """Fails the next `times` calls, unary calls and streams, including `GetModelInfo`.

        Args:
            code: The gRPC status code.
            reason: Of `google.rpc.ErrorInfo`.
            message: For people.
            retry_delay_seconds: Of `google.rpc.RetryInfo`, or `None` for none.
            error_id: Of `google.rpc.ErrorInfo`.
            pushback_ms: The trailer `grpc-retry-pushback-ms`; by default it is sent as a real server does.
            times: Number of calls.
            method: Only calls of this RPC, such as `EmbedText`.
        """
        failure = ScriptedFailure(code, reason, message, retry_delay_seconds, error_id, pushback_ms)
        self._state.script.fail_next(failure, times, method)

    def delay_next(self, seconds: float, *, times: int = 1, method: str | None = None) -> None:
        """Delays the answers to the next `times` calls, of one RPC or of any."""
        self._state.script.delay_next(seconds, times, method)

    def fail_input(
        self,
        content: Content,
        code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
        reason: str = "IMAGE_UNREADABLE",
        *,
        message: str = "failure injected by the test",
        retry_delay_seconds: float | None = None,
        times: int | None = None,
    ) -> None:
        """Fails every item, or the next `times` items, with this text or image."""
        failure = ScriptedFailure(code, reason, message, retry_delay_seconds)
        self._state.script.fail_input(_key(content), failure, times)

    def set_embedding(self, content: Content, vector: ArrayLike) -> None:
        """Sets the embedding of a text or an image; it is scaled to length 1.

        Raises:
            ValueError: Its size is not `embedding_dimension`, or its length is 0.
        """
        array = np.asarray(vector, np.float32)
        length = np.linalg.norm(array)
        if array.shape != (self.embedding_dimension,) or not 0 < length < np.inf:
            raise ValueError(f"give {self.embedding_dimension} finite numbers that are not all 0")
        self._state.vectors[_key(content)] = np.asarray(array / length, np.float32)

    def set_scores(self, image: bytes | NDArray[np.uint8], scores: Mapping[str, float]) -> None:
        """Sets the scores of an image by label, from 0 to 1.

        The scores of a request's labels are scaled to a sum of 1; a label without a score has about 0.
        """
        if not all(0 <= score <= 1 for score in scores.values()):
            raise ValueError(f"scores must be from 0 to 1: {dict(scores)}")
        self._state.scores[_key(image)] = dict(scores)

    def break_stream(
        self,
        after: int,
        code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        reason: str = "SHUTTING_DOWN",
        *,
        retry_delay_seconds: float | None = None,
        times: int = 1,
    ) -> None:
        """Ends each of the next `times` streams after `after` answers; a second call is for later ones."""
        failure = ScriptedFailure(code, reason, "stream ended by the test", retry_delay_seconds)
        self._state.script.break_streams(after, failure, times)

    def reverse_answers(self, count: int) -> None:
        """Answers the next `count` items of a stream last first, once all have arrived.

        A stream that asks for answers in the order of its requests gets them in that order.
        """
        self._state.reverse_count = count

    def set_ready(self, is_ready: bool) -> None:
        """Sets readiness; a server that is not ready refuses calls as if it were loading its model."""
        self._state.is_ready = is_ready

    def hold(self) -> None:
        """Holds all answers back until `release`. Streams are read meanwhile, up to their limit in flight."""
        self._state.gate.clear()

    def release(self) -> None:
        """Sends the answers that `hold` held back."""
        self._state.gate.set()

    def embedding_of(self, content: Content) -> NDArray[np.float32]:
        """Returns the normalized embedding of a text or an image: (embedding_dimension,)."""
        return self._state.vector_of(_key(content))

    def _bound_server(self, port: int) -> tuple[grpc.Server, int]:
        while True:
            server = grpc.server(self._pool, options=self._options)
            pb_grpc.add_AlignServiceServicer_to_server(FakeServicer(self._state), server)
            server.add_generic_rpc_handlers([health_handler(self._state)])
            address = f"127.0.0.1:{port}"
            if self._credentials is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, self._credentials)
            if port or bound not in _bound_ports:
                _bound_ports.add(bound)
                return server, bound
            server.stop(None)


def _key(content: Content) -> str | bytes:
    if isinstance(content, np.ndarray):
        pixels = rgb_pixels(content)
        height, width, _ = pixels.shape
        return pixels_key(height, width, pixels.tobytes())
    return content


def _channel_options(
    max_request_bytes: int, max_connection_age_seconds: float | None
) -> list[tuple[str, int]]:
    options = [
        # Otherwise a second server could start on the port and take half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_request_bytes),
    ]
    if max_connection_age_seconds is not None:
        options.append(("grpc.max_connection_age_ms", round(max_connection_age_seconds * 1000)))
    return options


def _credentials(
    certificate: Pem | None, key: Pem | None, client_ca: Pem | None
) -> grpc.ServerCredentials | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ValueError("give tls_certificate and tls_key together")
    roots = None if client_ca is None else read_pem("tls_client_ca", client_ca)
    pair = (read_pem("tls_key", key), read_pem("tls_certificate", certificate))
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)


if __name__ == "__main__":
    from alignserve._fake.command import main

    raise SystemExit(main(FakeServer))
