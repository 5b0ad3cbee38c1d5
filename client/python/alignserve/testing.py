"""A fake server for testing code that uses alignserve: real gRPC, no model.

Embeddings are derived from a hash of the input: the same input always gives the same vector, and different
inputs give unrelated vectors.

    with FakeServer() as server, Client(server.target) as client:
        assert client.embed_text("a cat").shape == (server.embedding_dimension,)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent import futures
from types import TracebackType

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignserve._fake import (
    FakeServicer,
    FakeState,
    ReceivedCall,
    ScriptedFailure,
    health_handler,
)
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

__all__ = ["FakeServer", "ReceivedCall"]

_WORKERS = 1000  # every stream and every held call occupies one; threads are created on demand


class FakeServer:
    """A server on a free local port, for the duration of a `with` statement.

    Args:
        embedding_dimension: Number of elements in an embedding.
        max_client_batch_size: Maximum number of images or texts in one request; clients split longer lists.
        max_text_tokens: Maximum length of a text, which has two tokens more than words. The word `[UNK]` is
            unknown.
        max_request_bytes: Maximum size of a request, as reported to clients.
        port: 0 chooses a free port.
        api_keys: If not empty, calls need one of these keys.
        image_formats: Formats reported to clients.
        checks_images: Refuse images that do not start like one of these formats, as a real server does. By
            default any bytes are an image.

    Attributes:
        target: The address, for `Client(target)`.
        embedding_dimension: As given.
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
        options = [
            (
                "grpc.so_reuseport",
                0,
            ),  # otherwise a second server could start on the port and take half of the calls
            ("grpc.max_receive_message_length", max_request_bytes),
        ]
        self._server = grpc.server(self._pool, options=options)
        pb_grpc.add_AlignServiceServicer_to_server(FakeServicer(self._state), self._server)
        self._server.add_generic_rpc_handlers([health_handler(self._state)])
        self.target = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"

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
        self._state.gate.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def fail_next(
        self,
        code: grpc.StatusCode,
        reason: str = "",
        *,
        message: str = "failure injected by the test",
        retry_delay_seconds: float | None = None,
        error_id: str = "",
        times: int = 1,
    ) -> None:
        """Fails the next `times` calls, unary calls and streams, including `GetModelInfo`."""
        failure = ScriptedFailure(code, reason, message, retry_delay_seconds, error_id)
        self._state.script.fail_next(failure, times)

    def fail_input(
        self,
        content: str | bytes,
        code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
        reason: str = "IMAGE_UNREADABLE",
        *,
        message: str = "failure injected by the test",
        retry_delay_seconds: float | None = None,
        times: int | None = None,
    ) -> None:
        """Fails every item, or the next `times` items, with this text or these image bytes."""
        failure = ScriptedFailure(code, reason, message, retry_delay_seconds)
        self._state.script.fail_input(content, failure, times)

    def set_embedding(self, content: str | bytes, vector: ArrayLike) -> None:
        """Sets the embedding of a text or of an image's bytes; it is scaled to length 1.

        Raises:
            ValueError: Its size is not `embedding_dimension`, or its length is 0.
        """
        array = np.asarray(vector, np.float32)
        length = np.linalg.norm(array)
        if array.shape != (self.embedding_dimension,) or not 0 < length < np.inf:
            raise ValueError(f"give {self.embedding_dimension} finite numbers that are not all 0")
        self._state.vectors[content] = np.asarray(array / length, np.float32)

    def set_scores(self, image: bytes, scores: Mapping[str, float]) -> None:
        """Sets the scores of an image by label, from 0 to 1.

        The scores of a request's labels are scaled to a sum of 1; a label without a score has about 0.
        """
        if not all(0 <= score <= 1 for score in scores.values()):
            raise ValueError(f"scores must be from 0 to 1: {dict(scores)}")
        self._state.scores[image] = dict(scores)

    def break_stream(
        self,
        after: int,
        code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        reason: str = "SHUTTING_DOWN",
    ) -> None:
        """Ends the next stream after `after` answers; a second call applies to the stream after that."""
        self._state.script.break_stream(after, ScriptedFailure(code, reason, "stream ended by the test"))

    def set_ready(self, is_ready: bool) -> None:
        """Sets readiness; a server that is not ready refuses calls as if it were loading its model."""
        self._state.is_ready = is_ready

    def hold(self) -> None:
        """Holds all answers back until `release`."""
        self._state.gate.clear()

    def release(self) -> None:
        """Sends the answers that `hold` held back."""
        self._state.gate.set()

    def embedding_of(self, content: str | bytes) -> NDArray[np.float32]:
        """Returns the normalized embedding of a text or of an image's bytes: (embedding_dimension,)."""
        return self._state.vector_of(content)
