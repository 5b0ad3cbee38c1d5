"""What serving adds to one caller's latency: the bare model call and the served call, alternating."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from alignserve import Client
from alignserve_server.model.align import AlignEncoder, load_align
from alignserve_server.model.checkpoint import resolve_checkpoint

from tests.processes import server_process

PHOTO = Path(__file__).parents[1] / "data" / "photos" / "cat.jpg"
TEXT = "a photo of a cat on a sofa"
LABELS = ["cat", "dog", "coffee", "rocket", "motorcycle"]

_CALLS = 60  # a round
_WARM_CALLS = 10


def run(checkpoint: str, rounds: int) -> str:
    """Measures and returns a section of the results.

    A bare call is what a program with the model in its own process would do: decode and forward of one
    photo, or tokenizing and forward of one text, on one thread, as a lane of the server runs it.
    """
    encoder = load_align(resolve_checkpoint(checkpoint))
    encoder.enter_lane()
    content = PHOTO.read_bytes()
    with server_process("--checkpoint", checkpoint) as server, Client(server.address) as client:
        pairs = {
            "EmbedImage": (lambda: _embed_image(encoder, content), lambda: client.embed_image(content)),
            "EmbedText": (lambda: _embed_text(encoder), lambda: client.embed_text(TEXT)),
            f"Classify, {len(LABELS)} known labels": (
                lambda: _embed_image(encoder, content),
                lambda: client.classify(content, LABELS),
            ),
        }
        rows = [_row(name, *_alternate(bare, served, rounds)) for name, (bare, served) in pairs.items()]
    return "\n".join(
        [
            "## One caller",
            "",
            f"Median of {rounds} rounds of {_CALLS} calls, bare and served in turn; milliseconds.",
            "",
            "| call | bare p50 | served p50 | added p50 | served p99 |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _embed_image(encoder: AlignEncoder, content: bytes) -> None:
    encoder.encode_images([encoder.preprocess_image(content)])


def _embed_text(encoder: AlignEncoder) -> None:
    encoder.encode_texts([encoder.tokenize(TEXT, truncate=False)])


def _alternate(
    bare: Callable[[], object], served: Callable[[], object], rounds: int
) -> tuple[list[list[float]], list[list[float]]]:
    _time(bare, _WARM_CALLS)
    _time(served, _WARM_CALLS)
    timed = [(_time(bare, _CALLS), _time(served, _CALLS)) for _ in range(rounds)]
    return [first for first, _ in timed], [second for _, second in timed]


def _time(call: Callable[[], object], count: int) -> list[float]:
    milliseconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        milliseconds.append((time.perf_counter() - start) * 1e3)
    return milliseconds


def _row(name: str, bare: list[list[float]], served: list[list[float]]) -> str:
    bare_p50, served_p50 = (statistics.median(map(statistics.median, rounds)) for rounds in (bare, served))
    added = statistics.median(
        statistics.median(after) - statistics.median(before)
        for before, after in zip(bare, served, strict=True)
    )
    p99 = statistics.median(statistics.quantiles(times, n=100)[98] for times in served)
    return f"| {name} | {bare_p50:.2f} | {served_p50:.2f} | {added:+.2f} | {p99:.2f} |"
