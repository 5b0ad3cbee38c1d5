"""Results over gRPC equal transformers' AlignModel and AlignProcessor on the same checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from alignserve import AsyncClient
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.serving.server import Server

from tests.integration.serving import settings
from tests.model.conftest import Pair

pytestmark = pytest.mark.model

TOLERANCE = 1e-4
TEXTS = ["cat", "a photo of a dog.", "Ünïcödé 猫 🚀 text", "the cat " * 12, "of rockets and dogs, " * 40]
LABELS = ["cat", "dog", "coffee", "rocket", "the cat and a dog"]


@asynccontextmanager
async def serving(pair: Pair) -> AsyncIterator[str]:
    """Serves the checkpoint for the length of the block, at the address that it yields."""
    server = Server(settings(lanes=2), lambda _: pair.encoder)
    await server.start()
    await server.load()
    yield f"127.0.0.1:{server.port}"
    await server.drain(0.0)
    await server.stop(5.0)


@asynccontextmanager
async def stub_of(pair: Pair) -> AsyncIterator[pb_grpc.AlignServiceAsyncStub]:
    """A stub of a server that serves the checkpoint."""
    async with serving(pair) as target, grpc.aio.insecure_channel(target) as channel:
        yield pb_grpc.AlignServiceStub(channel)


@pytest.fixture
async def client(pair: Pair) -> AsyncIterator[AsyncClient]:
    """A client of a server that serves the checkpoint."""
    async with serving(pair) as target, AsyncClient(target) as connected:
        yield connected


async def test_embed_image_equals_the_reference(client, pair, photos):
    """Embeddings of photos from concurrent callers equal the reference's."""
    expected = pair.reference.forward(list(photos.values()), ["cat"]).image_embeds.numpy()

    actual = await asyncio.gather(*(client.embed_image(photo) for photo in photos.values()))

    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


async def test_embed_text_equals_the_reference(client, pair, photos):
    """Embeddings of texts from concurrent callers, including truncated ones, equal the reference's."""
    expected = pair.reference.forward([photos["cat"]], TEXTS).text_embeds.numpy()

    actual = await asyncio.gather(*(client.embed_text(text, truncate=True) for text in TEXTS))

    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


async def test_classify_equals_the_reference(client, pair, photos):
    """Labels have the reference's order, scores, cosines and logits."""
    output = pair.reference.forward(list(photos.values()), [f"a photo of a {label}" for label in LABELS])
    scores = output.logits_per_image.softmax(dim=1).numpy()
    cosines = (output.image_embeds @ output.text_embeds.T).numpy()

    found = await client.classify(list(photos.values()), LABELS, prompt_templates=["a photo of a {label}"])

    for row, score, cosine, logit in zip(found, scores, cosines, output.logits_per_image, strict=True):
        order = list(np.argsort(-score, kind="stable"))
        assert [one.label_index for one in row] == order
        assert [one.score for one in row] == pytest.approx(score[order], abs=TOLERANCE)
        assert [one.similarity for one in row] == pytest.approx(cosine[order], abs=TOLERANCE)
        assert [one.logit for one in row] == pytest.approx(logit.numpy()[order], rel=1e-3, abs=1e-3)


async def test_several_templates_score_by_the_average_of_their_embeddings(client, pair, photos):
    """An ensemble of prompts is the mean of the reference's text embeddings, normalized again."""
    templates = ["a photo of a {label}", "the {label}", "{label}"]
    prompts = [template.replace("{label}", label) for label in LABELS for template in templates]
    output = pair.reference.forward([photos["cat"]], prompts)
    averages = output.text_embeds.numpy().reshape(len(LABELS), len(templates), -1).mean(axis=1)
    expected = (averages / np.linalg.norm(averages, axis=1, keepdims=True)) @ output.image_embeds.numpy()[0]

    found = await client.classify(photos["cat"], LABELS, prompt_templates=templates)

    assert [one.similarity for one in found] == pytest.approx(np.sort(expected)[::-1], abs=TOLERANCE)


async def test_a_batch_of_strangers_changes_nothing(client, photos):
    """The cosine between an input sent by itself and sent among 40 others is 1 within 1e-5."""
    inputs = [*photos.values(), *(" ".join(["cat"] * (1 + i)) for i in range(40))]

    async def embed(given: bytes | str) -> np.ndarray:
        return await (client.embed_text(given) if isinstance(given, str) else client.embed_image(given))

    alone = [await embed(given) for given in inputs]

    together = await asyncio.gather(*map(embed, inputs))

    assert max(1 - float(a @ b) for a, b in zip(alone, together, strict=True)) <= 1e-5


async def test_compare_equals_the_embeddings(pair, photos):
    """A similarity is the product of what EmbedImage and EmbedText return, and the reference's cosine."""
    images, texts = list(photos.values()), [f"a photo of a {label}" for label in LABELS[: len(photos)]]
    pairs = [(image, text) for image in images for text in texts]
    expected = pair.reference.forward(images, texts)
    cosines = (expected.image_embeds @ expected.text_embeds.T).numpy().ravel()

    async with stub_of(pair) as stub:
        compared = await stub.Compare(
            pb.CompareRequest(
                pairs=[pb.ImageTextPair(image=pb.Image(content=image), text=text) for image, text in pairs]
            )
        )
        embedded = await asyncio.gather(
            stub.EmbedImage(pb.EmbedImageRequest(images=[pb.Image(content=image) for image in images])),
            stub.EmbedText(pb.EmbedTextRequest(texts=texts)),
        )

    rows = [np.array([each.values for each in response.embeddings]) for response in embedded]
    similarities = [each.similarity for each in compared.comparisons]
    logits = [each.logit for each in compared.comparisons]
    np.testing.assert_allclose(similarities, (rows[0] @ rows[1].T).ravel(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(similarities, cosines, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits, expected.logits_per_image.numpy().ravel(), rtol=1e-3, atol=1e-2)


async def test_a_composed_query_equals_the_sum_of_the_references(pair, photos):
    """An image plus a text, minus another."""
    expected = pair.reference.forward([photos["cat"]], ["a rocket", "a dog"])
    image, (plus, minus) = expected.image_embeds.numpy()[0], expected.text_embeds.numpy()
    composed = image + plus - 0.5 * minus
    terms = [
        pb.QueryTerm(image=pb.Image(content=photos["cat"])),
        pb.QueryTerm(text="a rocket"),
        pb.QueryTerm(text="a dog", weight=-0.5),
    ]

    async with stub_of(pair) as stub:
        response = await stub.EmbedQuery(pb.EmbedQueryRequest(queries=[pb.ComposedQuery(terms=terms)]))

    np.testing.assert_allclose(
        response.embeddings[0].values, composed / np.linalg.norm(composed), rtol=0, atol=TOLERANCE
    )


async def test_int8_embeddings_keep_their_direction(pair, photos):
    """Their cosine with the exact embeddings is above what the proto states."""
    images = [pb.Image(content=photo) for photo in photos.values()]

    async with stub_of(pair) as stub:
        responses = [
            await stub.EmbedImage(
                pb.EmbedImageRequest(images=images, embedding_options=pb.EmbeddingOptions(format=each))
            )
            for each in (pb.EMBEDDING_FORMAT_FLOAT_LIST, pb.EMBEDDING_FORMAT_PACKED_INT8)
        ]

    exact = np.array([each.values for each in responses[0].embeddings])
    restored = [
        np.frombuffer(each.packed_int8, np.int8) * each.int8_scale for each in responses[1].embeddings
    ]
    cosines = (exact * restored).sum(axis=1) / np.linalg.norm(restored, axis=1)
    assert cosines.min() > 0.999
