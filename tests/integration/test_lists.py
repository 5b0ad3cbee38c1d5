"""Lists of the Python client that take a real server longer than the client's timeout."""

from __future__ import annotations

import asyncio

import numpy as np
from alignserve import AlignserveError, AsyncClient
from alignserve_server.model.fake import FakeEncoder

from tests.integration.serving import running

_CLIENTS = 3
_IMAGES = 200
_TIMEOUT_SECONDS = 0.6  # a client's first requests together take longer, a single one much less


def images(client: int) -> list[bytes]:
    return [b"client %d image %d" % (client, number) for number in range(_IMAGES)]


async def test_lists_of_three_clients_at_once_are_embedded_whole() -> None:
    """Images that would miss their deadline wait in the client until the server has embedded all."""
    encoder = FakeEncoder(seconds_per_entry=0.005)
    async with running(encoder, max_client_batch_size=16, max_queue_size=128) as served:
        target = f"127.0.0.1:{served.server.port}"

        async def embed(number: int) -> np.ndarray:
            async with AsyncClient(target, timeout_seconds=_TIMEOUT_SECONDS) as client:
                return await client.embed_image(images(number))

        rows = await asyncio.gather(*(embed(number) for number in range(_CLIENTS)))
        refused = sum(
            served.sample("alignserve_rejected_total", reason=reason)
            for reason in ("QUEUE_FULL", "WOULD_MISS_DEADLINE")
        )

    expected = [np.stack([encoder.embedding_of(image) for image in images(n)]) for n in range(_CLIENTS)]
    assert all(np.allclose(found, wanted, atol=1e-6) for found, wanted in zip(rows, expected, strict=True))
    assert refused > 0  # otherwise this test shows nothing


async def test_broken_images_are_named_and_their_neighbours_embedded() -> None:
    """The error of a request with several bad images has enough detail to resend the others."""
    sent = images(0)
    for position in range(0, _IMAGES, 3):
        sent[position] = b"broken %d" % position
    encoder = FakeEncoder()
    async with running(encoder) as served, AsyncClient(f"127.0.0.1:{served.server.port}") as client:
        found = await client.embed_image(sent, on_error="return")

    failed = [position for position, each in enumerate(found) if isinstance(each, AlignserveError)]
    assert failed == list(range(0, _IMAGES, 3))
    assert np.allclose(np.asarray(found[1]), encoder.embedding_of(sent[1]), atol=1e-6)


async def test_an_image_on_which_the_model_fails_is_found() -> None:
    """The server does not name it; the other images of its request are embedded."""
    encoder = FakeEncoder()
    sent = images(0)
    async with (
        running(encoder, max_client_batch_size=4) as served,
        AsyncClient(f"127.0.0.1:{served.server.port}") as client,
    ):
        encoder.failing = {encoder.key(sent[77])}
        found = await client.embed_image(sent, on_error="return")

    failed = {position: each for position, each in enumerate(found) if isinstance(each, AlignserveError)}
    assert {position: each.reason for position, each in failed.items()} == {77: "INFERENCE_FAILED"}
