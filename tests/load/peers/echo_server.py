"""A bare grpc.aio server that returns the same embedding to every call: the minimum for Python.

python -m tests.load.peers.echo_server DIMENSION PORT
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.server.max_pending_requests", 100_000),  # otherwise it drops calls of two thousand callers
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
]


class EchoServicer(pb_grpc.AlignServiceServicer):
    """Parses each request and returns one embedding per item."""

    def __init__(self, dimension: int) -> None:
        self._embedding = bytes(4 * dimension)

    async def EmbedImage(self, request: pb.EmbedImageRequest, context: Any) -> pb.EmbedImageResponse:
        return pb.EmbedImageResponse(
            embeddings=[pb.Embedding(packed_float32=self._embedding) for _ in request.images]
        )

    async def EmbedText(self, request: pb.EmbedTextRequest, context: Any) -> pb.EmbedTextResponse:
        return pb.EmbedTextResponse(
            embeddings=[pb.Embedding(packed_float32=self._embedding) for _ in request.texts]
        )

    async def StreamInfer(
        self, requests: AsyncIterator[pb.StreamInferRequest], context: Any
    ) -> AsyncIterator[pb.StreamInferResponse]:
        async for request in requests:
            if request.WhichOneof("request") == "embed_text":
                answer = await self.EmbedText(request.embed_text, context)
                yield pb.StreamInferResponse(correlation_id=request.correlation_id, embed_text=answer)
            elif request.WhichOneof("request") == "embed_image":
                image = await self.EmbedImage(request.embed_image, context)
                yield pb.StreamInferResponse(correlation_id=request.correlation_id, embed_image=image)


async def main(dimension: str, port: str) -> None:
    """Serves until it is killed."""
    server = grpc.aio.server(options=_OPTIONS)
    servicer = EchoServicer(int(dimension))  # type: ignore[abstract]  # other methods are UNIMPLEMENTED
    pb_grpc.add_AlignServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(*sys.argv[1:]))
