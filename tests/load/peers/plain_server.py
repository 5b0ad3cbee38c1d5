"""A server as most people would first write it: grpc.aio, transformers, one call at a time.

python -m tests.load.peers.plain_server FOLDER PORT
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.load.peers.plain_model import PlainModel


class PlainServicer(pb_grpc.AlignServiceServicer):
    """Runs one call at a time in a thread, which keeps the event loop free."""

    def __init__(self, model: PlainModel) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1)

    async def EmbedImage(self, request: pb.EmbedImageRequest, context: Any) -> pb.EmbedImageResponse:
        contents = [image.content for image in request.images]
        return pb.EmbedImageResponse(embeddings=await self._run(self._model.embed_images, contents))

    async def EmbedText(self, request: pb.EmbedTextRequest, context: Any) -> pb.EmbedTextResponse:
        # max_length is the processor's default padding
        return pb.EmbedTextResponse(
            embeddings=await self._run(self._model.embed_texts, list(request.texts), "max_length")
        )

    async def _run(self, embed: Any, *arguments: Any) -> list[pb.Embedding]:
        rows = await asyncio.get_running_loop().run_in_executor(self._thread, embed, *arguments)
        return [pb.Embedding(packed_float32=row.astype(np.float32).tobytes()) for row in rows]


async def main(folder: str, port: str) -> None:
    """Serves until it is killed."""
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)]
    )
    servicer = PlainServicer(PlainModel(folder))  # type: ignore[abstract]  # other methods are UNIMPLEMENTED
    pb_grpc.add_AlignServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
