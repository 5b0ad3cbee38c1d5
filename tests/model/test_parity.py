"""Embeddings and scores equal those of transformers' AlignModel and AlignProcessor on the same checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from alignserve_server.model.align import LoadOptions, load_align
from alignserve_server.model.encoder import l2_normalize
from alignserve_server.model.zero_shot import score_images

pytestmark = pytest.mark.model

TEXTS = [
    "cat",
    "a photo of a dog.",
    "A Photo of THE coffee, and a rocket!",
    "Ünïcödé 猫 🚀 text",
    "the cat " * 12,
    "of rockets and dogs, " * 40,
]
TOLERANCE = 1e-4


def embed_images(encoder, contents):
    return l2_normalize(encoder.encode_images([encoder.preprocess_image(content) for content in contents]))


def embed_texts(encoder, texts):
    return l2_normalize(
        encoder.encode_texts([encoder.tokenize(text, truncate=True).token_ids for text in texts])
    )


def test_image_embeddings_equal_the_reference(pair, photos):
    """Embeddings of photos equal AlignModel's, and all differ."""
    expected = pair.reference.forward(list(photos.values()), ["cat"]).image_embeds.numpy()

    actual = embed_images(pair.encoder, photos.values())

    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)
    assert actual.dtype == np.float32
    assert np.linalg.norm(actual[0] - actual[1:], axis=1).min() > 100 * TOLERANCE


def test_text_embeddings_equal_the_reference(pair, photos):
    """Embeddings of texts of all lengths, including truncated ones, equal AlignModel's, and all differ."""
    expected = pair.reference.forward([photos["cat"]], TEXTS).text_embeds.numpy()

    actual = embed_texts(pair.encoder, TEXTS)

    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)
    assert np.linalg.norm(actual[0] - actual[1:], axis=1).min() > 100 * TOLERANCE


def test_scores_equal_the_reference(pair, photos):
    """Labels rank as by the softmax of AlignModel's logits, with the same scores."""
    logits = pair.reference.forward(list(photos.values()), TEXTS).logits_per_image
    expected = logits.softmax(dim=1).numpy()

    labels = embed_texts(pair.encoder, TEXTS)
    images = embed_images(pair.encoder, photos.values())
    ranked = list(score_images(images, labels, pair.encoder.info.temperature))

    for row, reference in zip(ranked, expected, strict=True):
        assert [label.label_index for label in row] == list(np.argsort(-reference, kind="stable"))
        assert [label.score for label in row] == pytest.approx(np.sort(reference)[::-1], abs=TOLERANCE)


def test_an_image_is_the_same_by_itself_and_in_a_batch(pair, photos):
    """The cosine between batch 1 and batch 4 is 1 within 1e-5."""
    together = embed_images(pair.encoder, photos.values())

    alone = np.concatenate([embed_images(pair.encoder, [photo]) for photo in photos.values()])

    assert (1 - (alone * together).sum(axis=1)).max() <= 1e-5


def test_a_text_is_the_same_by_itself_and_in_a_mixed_batch(pair):
    """The cosine between a text by itself and padded in a batch is 1 within 1e-5."""
    together = embed_texts(pair.encoder, TEXTS)

    alone = np.concatenate([embed_texts(pair.encoder, [text]) for text in TEXTS])

    assert (1 - (alone * together).sum(axis=1)).max() <= 1e-5


def test_bfloat16_passes_the_default_limit(mini, photos, cache_dir):
    """On OpenVINO it is served without a lower limit, with a cosine of at least 0.9995 to float32."""
    try:
        encoder = load_align(
            mini.checkpoint, LoadOptions(runtime="openvino", dtype="bfloat16", cache_dir=cache_dir)
        )
    except ValueError as error:  # a CPU without the instructions, or no openvino
        pytest.skip(str(error))

    images = embed_images(encoder, photos.values()) * embed_images(mini.encoder, photos.values())
    texts = embed_texts(encoder, TEXTS) * embed_texts(mini.encoder, TEXTS)

    assert encoder.info.dtype == "bfloat16"
    assert encoder.info.min_cosine_similarity >= 0.9995
    assert images.sum(axis=1).min() >= 0.9995
    assert texts.sum(axis=1).min() >= 0.9995


@pytest.mark.long
@pytest.mark.parametrize(
    ("runtime_name", "dtype"), [("torch", "bfloat16"), ("torch", "float16"), ("openvino", "bfloat16")]
)
def test_reduced_precision_stays_close(mini, photos, cache_dir, runtime_name, dtype):
    """Half precision keeps a cosine of at least 0.99 with float32 on the embedded checkpoint."""
    encoder = _reduced(mini.checkpoint, runtime_name, dtype, cache_dir)

    images = embed_images(encoder, photos.values()) * embed_images(mini.encoder, photos.values())
    texts = embed_texts(encoder, TEXTS) * embed_texts(mini.encoder, TEXTS)

    assert images.sum(axis=1).min() > 0.99
    assert texts.sum(axis=1).min() > 0.99
    assert encoder.info.dtype == dtype


def _reduced(checkpoint, runtime_name, dtype, cache_dir):
    try:
        return load_align(
            checkpoint,
            LoadOptions(
                device="cpu",
                runtime=runtime_name,
                dtype=dtype,
                min_cosine_similarity=0.99,
                cache_dir=cache_dir,
            ),
        )
    except ValueError as error:  # a CPU without the instructions, or no openvino
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["cat", "coffee", "rocket"])
def test_the_embedded_checkpoint_knows_the_photos(mini, photos, name):
    """The best of eight labels for a real photo is right."""
    labels = ["cat", "dog", "coffee", "rocket", "motorcycle", "horse", "flower", "person"]
    texts = embed_texts(mini.encoder, [f"a photo of a {label}." for label in labels])
    image = embed_images(mini.encoder, [photos[name]])

    ((best,),) = score_images(image, texts, mini.encoder.info.temperature, top_k=1)

    assert labels[best.label_index] == name
