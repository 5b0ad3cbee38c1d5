"""What the benchmarks send: the test photos and made-up captions, no two requests alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignserve._bench.images import varied_image
from alignserve._bench.sentences import sentences
from alignserve._bench.workload import Call, Inputs, calls
from alignserve.v1 import align_service_pb2 as pb

PHOTOS = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "data" / "photos").glob("*.jpg"))]
TEXTS = sentences(2000, "mixed", seed=0)


def grpc_calls(modality: str, items_per_request: int = 1, seed: int = 0) -> Iterator[Call]:
    """Yields calls of `EmbedImage` or `EmbedText`."""
    inputs = Inputs(
        images=[varied_image(photo) for photo in PHOTOS], texts=TEXTS, items_per_request=items_per_request
    )
    return calls({modality: 1.0}, inputs, seed)


def bodies(modality: str) -> Iterator[bytes]:
    """Yields the same inputs bare, for what is not served by gRPC."""
    for call in grpc_calls(modality):
        if modality == "image":
            yield pb.EmbedImageRequest.FromString(call.request).images[0].content
        else:
            yield pb.EmbedTextRequest.FromString(call.request).texts[0].encode()
