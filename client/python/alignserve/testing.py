"""A fake server for tests of code that uses alignserve: real gRPC, no model.

Embeddings are drawn from a hash of the input: the same input always gives the same vector, and different
inputs give unrelated ones.

    with FakeServer() as server, Client(server.target) as client:
        assert client.embed_text("a cat").shape == (server.embedding_dimension,)
"""

from __future__ import annotations

from concurrent import futures
from types import TracebackType

import grpc
import numpy as np
from numpy.typing import NDArray

from alignserve._fake import (
    Failure,
    FakeServicer,
    FakeState,
    ReceivedCall,
    fake_embedding,
    health_handler,
)
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

__all__ = ["FakeServer", "ReceivedCall"]

_WORKERS = 1000  # each stream and each call that is held keeps one; threads are made as they are needed


class FakeServer:
    """A server on a free port of this machine, for the time of a `with` statement.

    Args:
        embedding_dimension: Number of elements in an embedding.
        max_client_batch_size: Most images or texts in one request; clients split longer lists.
        max_text_tokens: Longest text; a text has as many tokens as words, and two more. The word `[UNK]` is
            unknown.
        max_request_bytes: Largest request, as clients are told.
        port: 0 takes a free one.

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
            image_formats=["JPEG", "PNG"],
            server_version="fake",
            min_cosine=1.0,
            max_response_bytes=16 << 20,
        )
        self._state = FakeState(info)
        self.release()
        self._pool = futures.ThreadPoolExecutor(_WORKERS, "alignserve-fake")
        options = [
            (
                "grpc.so_reuseport",
                0,
            ),  # or a second server on the port would start, and take half of the calls
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
        """Returns every message that has arrived, in order."""
        return self._state.received

    def wait_for_received(self, count: int, timeout_seconds: float = 10.0) -> None:
        """Returns once `count` messages have arrived in all.

        Raises:
            TimeoutError: They did not within the time given.
        """
        with self._state.arrived:
            if not self._state.arrived.wait_for(lambda: len(self.received) >= count, timeout_seconds):
                raise TimeoutError(f"{len(self.received)} of {count} messages in {timeout_seconds:g} s")

    def stop(self) -> None:
        """Stops at once: calls in flight break, and new ones find nobody."""
        self._state.gate.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def fail_next(
        self,
        code: grpc.StatusCode,
        reason: str = "",
        *,
        message: str = "failed as the test wants",
        retry_delay_seconds: float | None = None,
        error_id: str = "",
        times: int = 1,
    ) -> None:
        """Fails the next `times` calls, unary or streams, `GetModelInfo` among them."""
        failure = Failure(code, reason, message, retry_delay_seconds, error_id)
        self._state.script.fail_next(failure, times)

    def fail_input(
        self,
        content: str | bytes,
        code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
        reason: str = "IMAGE_UNREADABLE",
        *,
        message: str = "unreadable as the test wants",
        retry_delay_seconds: float | None = None,
        times: int | None = None,
    ) -> None:
        """Fails every item, or the next `times`, that is this text or has these bytes as its image."""
        failure = Failure(code, reason, message, retry_delay_seconds)
        self._state.script.fail_input(content, failure, times)

    def break_stream(
        self,
        after: int,
        code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        reason: str = "SHUTTING_DOWN",
    ) -> None:
        """Ends the next stream after `after` answers; called again, the one after that."""
        self._state.script.break_stream(after, Failure(code, reason, "the stream ends as the test wants"))

    def set_ready(self, is_ready: bool) -> None:
        """Turns readiness on or off; a server that is not ready refuses calls as one that loads its model."""
        self._state.is_ready = is_ready

    def hold(self) -> None:
        """Keeps all answers back until `release`."""
        self._state.gate.clear()

    def release(self) -> None:
        """Gives the answers that `hold` kept back."""
        self._state.gate.set()

    def embedding_of(self, content: str | bytes) -> NDArray[np.float32]:
        """Returns the embedding of a text or of the bytes of an image, normalized: (embedding_dimension,)."""
        return fake_embedding(content, self.embedding_dimension)
