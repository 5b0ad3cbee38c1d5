"""Images made to break decoders are embedded or refused one by one, without effect on other calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO

import pytest
from alignserve.v1 import align_service_pb2 as pb
from PIL import Image

from tests.hostile.corpora import IMAGES, Corpus
from tests.hostile.live import MAX_DECODING_BYTES, OK, PHOTOS, LiveServer, Outcome, outcomes_of
from tests.hostile.mutations import SIGNATURES, mutants
from tests.integration.serving import image_request

pytestmark = pytest.mark.hostile

_MUTANTS_OF_A_FILE = 6
_MUTANTS_OF_OURS = 2
_MORE_MUTANTS_OF_OURS = 10
_REFUSED = {
    Outcome("INVALID_ARGUMENT", reason, ("images[0].content",))
    for reason in ("REQUEST_EMPTY", "IMAGE_UNREADABLE", "IMAGE_TOO_LARGE")
}


def _ours(mutants_of_each: int) -> Iterator[bytes]:
    """Yields the repository's photos and small images of many kinds, and damaged copies of them."""
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    for content in (*photos, *_drawn()):
        yield content
        yield from mutants(content, mutants_of_each)


def _drawn() -> Iterator[bytes]:
    gradient = Image.radial_gradient("L")
    kinds = [("JPEG", "L RGB CMYK"), ("PNG", "1 L LA P RGB RGBA I;16"), ("WEBP", "RGB RGBA")]
    kinds += [("GIF", "L P"), ("BMP", "1 L P RGB"), ("TIFF", "1 L P RGB CMYK"), ("AVIF", "L RGB RGBA")]
    for file_format, modes in kinds:
        for mode in modes.split():
            buffer = BytesIO()
            gradient.convert(mode).save(buffer, file_format)
            yield buffer.getvalue()


def _with_mutants(corpus: Corpus) -> Iterator[bytes]:
    """Yields a corpus, and damaged copies of the files that a decoder would open."""
    for path in corpus.files():
        content = path.read_bytes()
        yield content
        if content.startswith(SIGNATURES):
            yield from mutants(content, _MUTANTS_OF_A_FILE)


def _sources() -> Iterator[pytest.ParameterSet]:
    yield pytest.param(partial(_ours, _MUTANTS_OF_OURS), id="ours")
    yield pytest.param(partial(_ours, _MORE_MUTANTS_OF_OURS), id="more of ours", marks=pytest.mark.long)
    for corpus in IMAGES:
        is_absent = pytest.mark.skipif(
            not corpus.files(), reason=f"corpus {corpus.name} is not installed; `make hostile` fetches it"
        )
        yield pytest.param(
            partial(_with_mutants, corpus), id=corpus.name, marks=[is_absent, pytest.mark.long]
        )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", list(_sources()))
async def test_every_image_is_embedded_or_refused(
    live: LiveServer, source: Callable[[], Iterator[bytes]], tallies: dict[str, Counter[str]], request
) -> None:
    """Calls and streams give the same reason and field; none fails with a server error."""
    memory = live.watch_memory()

    by_call = await outcomes_of(live.stub.EmbedImage(image_request(content)) for content in source())
    by_stream = await live.stream(
        pb.StreamInferRequest(embed_image=image_request(content)) for content in source()
    )

    tallies[request.node.callspec.id] = Counter(each.reason or each.code for each in by_call + by_stream)
    assert set(by_call) <= {OK, *_REFUSED}
    assert by_stream == by_call
    assert memory.growth < MAX_DECODING_BYTES


async def test_no_vector_graphic_is_accepted(live: LiveServer) -> None:
    """SVG can load other files and run scripts, so it is refused, compressed or not."""
    paths = [path for corpus in IMAGES for path in corpus.files() if path.suffix in (".svg", ".svgz")]
    drawings = [b"<svg xmlns='http://www.w3.org/2000/svg'/>", *(path.read_bytes() for path in paths)]

    outcomes = await outcomes_of(live.stub.EmbedImage(image_request(drawing)) for drawing in drawings)

    assert set(outcomes) <= _REFUSED
