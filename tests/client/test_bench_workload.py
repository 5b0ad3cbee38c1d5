"""The requests of the bench."""

from __future__ import annotations

import io
import itertools
import warnings
from collections import Counter
from pathlib import Path

import pytest
from alignserve._bench.images import synthetic_photos, varied_image
from alignserve._bench.inputs import Inputs, image_inputs, text_inputs
from alignserve._bench.sentences import TextLength, sentences
from alignserve._bench.tags import COUNT, TAG_SIZE, tags
from alignserve._bench.wire import content_fields, framed, varint
from alignserve._bench.workload import CLASSIFY, EMBED_IMAGE, EMBED_TEXT, calls
from alignserve.v1 import align_service_pb2 as pb
from PIL import Image

TAG = b"abc0123"


def encoded(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    image = Image.linear_gradient("L").resize((33, 21)).convert(mode)
    image.save(file, kind)
    return file.getvalue()


def pixels(content: bytes) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *[("PNG", "RGB"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "L"), ("GIF", "P"), ("GIF", "L")],
        *[("WEBP", "RGB"), ("BMP", "RGB")],
    ],
)
def test_unique_images_decode_to_the_same_pixels(kind: str, mode: str) -> None:
    """The tag changes the bytes of a file but not its pixels."""
    content = encoded(kind, mode)

    marked = b"".join(varied_image(content).pieces(TAG))

    assert TAG in marked
    assert marked != content
    assert pixels(marked) == pixels(content)


@pytest.mark.parametrize("photo", sorted((Path(__file__).parents[1] / "data/photos").iterdir()))
def test_unique_photos_decode_to_the_same_pixels(photo: Path) -> None:
    """Files of real cameras and programs can be tagged too."""
    content = photo.read_bytes()

    marked = b"".join(varied_image(content).pieces(TAG))

    assert pixels(marked) == pixels(content)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff", encoded("PNG")[:10], b"GIF8"])
def test_unsupported_files_are_refused(content: bytes) -> None:
    """The error suggests --no-unique."""
    with pytest.raises(ValueError, match="--no-unique"):
        varied_image(content)


def test_made_up_photos_are_photo_sized_and_always_the_same() -> None:
    """Generated photos decode, differ from each other, and are as large as a photo's PNG."""
    photos = synthetic_photos(2)

    assert photos == synthetic_photos(2)
    assert photos[0] != photos[1]
    assert all(Image.open(io.BytesIO(photo)).size == (640, 480) for photo in photos)
    assert all(100_000 < len(photo) < 1_000_000 for photo in photos)


def test_tags_do_not_repeat_and_keep_their_size() -> None:
    """Tags differ, even when their numbers wrap around to 0."""
    found = list(itertools.islice(tags(COUNT - 500), 1000))

    assert len(set(found)) == 1000
    assert {len(tag) for tag in found} == {TAG_SIZE}


@pytest.mark.parametrize(
    ("length", "shortest", "longest"), [("short", 3, 8), ("mixed", 3, 46), ("long", 40, 46)]
)
def test_captions_differ_and_have_their_length(length: TextLength, shortest: int, longest: int) -> None:
    """A thousand captions are all different, and a seed reproduces them."""
    found = sentences(1000, length, 3)

    counts = [len(text.split()) for text in found]
    assert len(set(found)) == 1000
    assert (min(counts), max(counts)) == (shortest, longest)
    assert found == sentences(1000, length, 3)


def test_requests_are_what_the_protos_say() -> None:
    """The generated code parses hand-framed requests: items, options and labels."""
    inputs = Inputs(
        image_inputs([], 1, is_unique=True), ["one", "zwei ä"], ["cat", "dog"], items_per_request=3
    )
    found = {kind: next(calls({kind: 1.0}, inputs, seed=1)) for kind in ("image", "text", "classify")}

    image = pb.EmbedImageRequest.FromString(found["image"].request)
    text = pb.EmbedTextRequest.FromString(found["text"].request)
    classify = pb.ClassifyRequest.FromString(found["classify"].request)

    assert [call.method for call in found.values()] == [EMBED_IMAGE, EMBED_TEXT, CLASSIFY]
    assert {call.items for call in found.values()} == {3}
    assert len({pixels(one.content) for one in image.images}) == 3
    assert image.embedding_options.format == pb.EMBEDDING_FORMAT_PACKED_FLOAT32
    assert [one.rsplit(" ", 1)[0] for one in text.texts] == ["one", "zwei ä", "one"]
    assert (len(classify.images), list(classify.labels)) == (3, ["cat", "dog"])


def test_no_two_inputs_are_the_same_by_default() -> None:
    """Ten rounds over the same inputs give as many different texts as requests."""
    workload = calls({"text": 1.0}, Inputs(texts=["a", "b"]), seed=1)

    requests = [call.request for call in itertools.islice(workload, 20)]

    assert len(set(requests)) == 20


def test_inputs_repeat_if_wanted() -> None:
    """Without tags, texts are sent unchanged."""
    workload = calls({"text": 1.0}, Inputs(texts=["a", "b"], is_unique=False), seed=1)

    texts = [pb.EmbedTextRequest.FromString(next(workload).request).texts[0] for _ in range(4)]

    assert texts == ["a", "b", "a", "b"]


def test_a_seed_repeats_the_requests() -> None:
    """The same seed gives the same bytes, and another seed other bytes."""
    inputs = Inputs(texts=["a", "b"])
    one, same, other = (list(itertools.islice(calls({"text": 1.0}, inputs, seed), 50)) for seed in (1, 1, 2))

    assert one == same
    assert not set(one) & set(other)


def test_a_mix_keeps_its_proportions() -> None:
    """With image=1,text=2 a third are images; a kind with weight 0 does not occur."""
    inputs = Inputs([varied_image(encoded("PNG"))], ["a"], ["cat"])
    workload = calls({"image": 1.0, "text": 2.0, "classify": 0.0}, inputs, seed=1)

    counts = Counter(call.method for call in itertools.islice(workload, 3000))

    assert set(counts) == {EMBED_IMAGE, EMBED_TEXT}
    assert counts[EMBED_IMAGE] == pytest.approx(1000, rel=0.1)


def test_files_that_cannot_be_tagged_are_named(tmp_path: Path) -> None:
    """The error names the file at fault."""
    (tmp_path / "bad.png").write_bytes(b"no image")

    with pytest.raises(ValueError, match=r"bad\.png"):
        image_inputs([tmp_path], 1, is_unique=True)


def test_texts_are_lines_that_are_not_blank(tmp_path: Path) -> None:
    """Blank lines are skipped."""
    (tmp_path / "texts").write_text(" a cat \n\n a dog\n", encoding="utf-8")

    assert text_inputs(tmp_path / "texts", "mixed", 1) == ["a cat", "a dog"]


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 1 << 31])
def test_framing_is_that_of_protobuf(number: int) -> None:
    """Lengths of one byte and of several are encoded and decoded like the generated code's."""
    content = b"x" * min(number, 70_000)

    message = b"".join(framed(pb.Image.CONTENT_FIELD_NUMBER, [content[:5], content[5:]]))

    assert pb.Image.FromString(message).content == content
    assert content_fields(b"\x08" + varint(number) + message) == {1: content}


@pytest.mark.parametrize("message", [b"\x0a", b"\x0a\x05abc", b"\x80", b"\x0b"])
def test_invalid_messages_are_refused(message: bytes) -> None:
    """A truncated or garbled answer is refused."""
    with pytest.raises(ValueError, match="not a protobuf message"):
        content_fields(message)
