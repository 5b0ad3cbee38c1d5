"""The fake encoder is deterministic, and fails on request."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from alignserve_server.errors import ImageUnreadable, TextEmpty, TextTooLong
from alignserve_server.model.encoder import OutOfDeviceMemory
from alignserve_server.model.fake import FakeBatch, FakeEncoder


def encode_images(fake: FakeEncoder, *contents: bytes) -> np.ndarray:
    return fake.encode_images([fake.preprocess_image(content) for content in contents])


def test_equal_inputs_agree_and_others_do_not():
    """Each input has its own embedding of length 1, the same in every instance."""
    inputs = [f"image {i}".encode() for i in range(1000)] + [f"text {i}" for i in range(1000)]

    embeddings = np.stack([FakeEncoder().embedding_of(payload) for payload in inputs])

    assert len(np.unique(embeddings, axis=0)) == len(inputs)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    assert embeddings.dtype == np.float32


def test_embeddings_equal_embedding_of():
    """Embeddings of both modalities equal `embedding_of`."""
    fake = FakeEncoder(embedding_dimension=5)

    images = encode_images(fake, b"a", b"b")
    texts = fake.encode_texts([fake.tokenize("a cat", truncate=False).token_ids])

    np.testing.assert_array_equal(images, [fake.embedding_of(b"a"), fake.embedding_of(b"b")])
    np.testing.assert_array_equal(texts, [fake.embedding_of("a cat")])
    assert fake.batches == [
        FakeBatch("image", (fake.key(b"a"), fake.key(b"b"))),
        FakeBatch("text", (fake.key("a cat"),)),
    ]


@pytest.mark.parametrize("content", [b"", b"broken jpeg"])
def test_refuses_broken_images(content):
    """Certain bytes represent an image that does not decode."""
    with pytest.raises(ImageUnreadable):
        FakeEncoder().preprocess_image(content)


def test_counts_words_as_tokens():
    """A text has its words plus two special tokens, within the limits of a real tokenizer."""
    fake = FakeEncoder()

    assert len(fake.tokenize("a photo of a cat", truncate=False).input_ids) == 7
    assert fake.tokenize("word " * 63, truncate=True).truncated
    with pytest.raises(TextTooLong, match="65 tokens, limit 64"):
        fake.tokenize("word " * 63, truncate=False)
    with pytest.raises(TextEmpty):
        fake.tokenize(" ", truncate=True)


def test_fails_on_demand():
    """Failing entries fail their batch, NaN affects only its entry, and large batches run out of memory."""
    fake = FakeEncoder()
    fake.failing.add(fake.key(b"poison"))
    fake.not_finite.add(fake.key(b"nan"))
    fake.max_batch_size = 2

    with pytest.raises(RuntimeError, match="poison"):
        encode_images(fake, b"fine", b"poison")
    with pytest.raises(OutOfDeviceMemory):
        encode_images(fake, b"1", b"2", b"3")
    assert np.isnan(encode_images(fake, b"fine", b"nan")).all(axis=1).tolist() == [False, True]


def test_the_gate_holds_a_forward():
    """A closed gate holds a batch on the device until it opens."""
    fake = FakeEncoder()
    fake.gate.clear()
    lane = threading.Thread(target=encode_images, args=(fake, b"a"))

    lane.start()
    lane.join(0.05)
    was_held = lane.is_alive()
    fake.gate.set()
    lane.join(5)

    assert was_held
    assert not lane.is_alive()


def test_simulates_the_time_of_a_forward():
    """A batch takes its overhead plus the time of its entries."""
    slept: list[float] = []
    fake = FakeEncoder(seconds_per_batch=1.0, seconds_per_entry=0.25, is_recording=False, sleep=slept.append)

    encode_images(fake, b"a", b"b")

    assert slept == [1.5]
    assert fake.batches == []
