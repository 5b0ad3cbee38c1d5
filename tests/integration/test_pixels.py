"""Raw pixels over gRPC, wherever a request has an image."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.api import ImageInput, PixelArray

from tests.integration.serving import PACKED, RunningServer, refused, running, until
from tests.integration.test_unary import vector

ARRAY = PixelArray(2, 3, bytes(range(18)))


def pixels(height: int = ARRAY.height, width: int = ARRAY.width, data: bytes = ARRAY.data) -> pb.Image:
    return pb.Image(pixels=pb.Pixels(height=height, width=width, data=data))


async def test_files_and_pixels_mix_in_a_call(served: RunningServer) -> None:
    """Each image gets its own embedding, whatever its source."""
    request = pb.EmbedImageRequest(
        images=[pixels(), pb.Image(content=b"file"), pixels(3, 2)], embedding_options=PACKED
    )

    response = await served.stub.EmbedImage(request)

    sent: list[ImageInput] = [ARRAY, b"file", PixelArray(3, 2, ARRAY.data)]
    expected = [served.encoder.embedding_of(each) for each in sent]
    np.testing.assert_allclose(list(map(vector, response.embeddings)), expected, atol=1e-6)


async def test_every_method_takes_pixels(served: RunningServer) -> None:
    """Classify, Compare and EmbedQuery see the same image as EmbedImage."""
    of_image, of_text = served.encoder.embedding_of(ARRAY), served.encoder.embedding_of("cat")

    classified = await served.stub.Classify(pb.ClassifyRequest(images=[pixels()], labels=["cat"]))
    compared = await served.stub.Compare(
        pb.CompareRequest(pairs=[pb.ImageTextPair(image=pixels(), text="cat")])
    )
    query = pb.ComposedQuery(terms=[pb.QueryTerm(image=pixels())])
    embedded = await served.stub.EmbedQuery(pb.EmbedQueryRequest(queries=[query], embedding_options=PACKED))

    similarity = classified.results[0].classifications[0].similarity
    np.testing.assert_allclose(
        [similarity, compared.comparisons[0].similarity], of_image @ of_text, atol=1e-6
    )
    np.testing.assert_allclose(vector(embedded.embeddings[0]), of_image, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "field"),
    [
        (pixels(height=0), "height"),
        (pixels(height=-(2**31)), "height"),
        (pixels(width=0), "width"),
        (pixels(width=-1), "width"),
        (pixels(data=b""), "data"),
        (pixels(data=ARRAY.data[:-1]), "data"),
        (pixels(data=ARRAY.data + b"x"), "data"),
        (pixels(2**31 - 1, 2**31 - 1), "data"),
        (pixels(-2, -3), "height"),
        (pb.Image(pixels=pb.Pixels()), "height"),
    ],
)
async def test_data_that_does_not_fit_its_size_is_refused(
    served: RunningServer, image: pb.Image, field: str
) -> None:
    """The part at fault is named; nothing reaches the device."""
    error = await refused(served.stub.EmbedImage(pb.EmbedImageRequest(images=[pixels(), image])))

    assert error.reason == "IMAGE_UNREADABLE"
    assert error.fields == [f"images[1].pixels.{field}"]
    assert served.encoder.batches == []
    await until(lambda: served.items("image")["in_flight"] == 0)


async def test_a_cached_image_is_found_by_its_pixels_and_size() -> None:
    """The same bytes with another size, or as a file, are another image."""
    async with running(image_cache_bytes=1 << 20) as served:

        async def is_cached(image: pb.Image) -> bool:
            request = pb.EmbedImageRequest(images=[image], include_stats=True)
            return (await served.stub.EmbedImage(request)).stats.cached_item_count == 1

        found = [await is_cached(image) for image in (pixels(), pixels(), pixels(3, 2), pixels(1, 6))]
        as_file = await is_cached(pb.Image(content=ARRAY.data))

    assert found == [False, True, False, False]
    assert not as_file


async def test_pixels_take_room_in_the_queue_by_their_bytes() -> None:
    """They are counted as they were sent; the limit on the bytes of files does not apply to them."""
    arrays = [bytes([value]) * (3 * 100 * 100) for value in range(6)]
    requests = [
        pb.EmbedImageRequest(images=[pixels(100, 100, array) for array in arrays[i : i + 3]]) for i in (0, 3)
    ]
    async with running(max_queue_bytes=100_000, max_image_bytes=10_000) as served:
        served.encoder.gate.clear()
        calls = [served.stub.EmbedImage(pb.EmbedImageRequest(images=[pixels()]))]
        await until(lambda: len(served.encoder.batches) == 1)
        calls.append(served.stub.EmbedImage(requests[0]))
        await until(lambda: served.waiting("image") == 3)

        error = await refused(served.stub.EmbedImage(requests[1]))
        served.encoder.gate.set()
        await asyncio.gather(*calls)

    assert error.reason == "QUEUE_FULL"
