"""Measures what serving adds to one caller's latency: bare and served calls take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from alignserve import Client
from alignserve_server.model.encoder import Embeddings, Encoder, l2_normalize
from alignserve_server.model.zero_shot import score_images

from tests.load.inputs import bodies
from tests.load.measuring import Plan, progress
from tests.load.offline import bare_encoder
from tests.load.report import Bar, Section, number, table
from tests.processes import server_process

_LABELS = ["cat", "dog", "coffee", "rocket", "motorcycle"]
_CALLS = 60  # per round
_WARM_CALLS = 10
_CALLS_AT_A_TIME = 10
_PAUSE_SECONDS = 0.05  # until threads of one side stop spinning for work and free the cores for the other
_MAX_ADDED_MS = 1.5

_NOTE = """\
A bare call is what a program with the model in its own process does, in a thread set up like a lane of the
server: decode and forward, or tokenize and forward; for Classify, with 5 labels that the server has cached,
also scoring. Bare and served calls take turns, ten at a time, with the same inputs, all different.
Milliseconds."""


@dataclass(frozen=True)
class _Pair:
    """A bare call and its served form."""

    name: str
    modality: str
    bare: Callable[[bytes], object]
    served: Callable[[bytes], object]


@dataclass(frozen=True)
class _Times:
    """Milliseconds of bare and served calls."""

    bare: list[float]
    served: list[float]

    @property
    def added_p50(self) -> float:
        return statistics.median(self.served) - statistics.median(self.bare)


def run(plan: Plan) -> Section:
    """Measures each kind of call."""
    with server_process("--checkpoint", plan.checkpoint) as server, Client(server.address) as client:
        encoder = bare_encoder(plan.checkpoint)
        measured = {pair.name: _measure(pair, plan) for pair in _pairs(encoder, client)}
    head = ("call", "bare p50", "served p50", "added p50", "served p99")
    bars = [
        Bar(f"latency added to one {name}, ms", times.added_p50, _MAX_ADDED_MS, is_ceiling=True)
        for name, times in measured.items()
    ]
    rows = [_row(name, times) for name, times in measured.items()]
    return Section(f"One caller: {plan.model}", [_NOTE, table(head, rows)], bars)


def _pairs(encoder: Encoder, client: Client) -> list[_Pair]:
    def embed_image(content: bytes) -> Embeddings:
        return encoder.encode_images([encoder.preprocess_image(content)])

    def embed_text(text: str) -> Embeddings:
        return encoder.encode_texts([encoder.tokenize(text, truncate=True).token_ids])

    labels = l2_normalize(np.concatenate([embed_text(label) for label in _LABELS]))

    def classify(content: bytes) -> object:
        return list(score_images(l2_normalize(embed_image(content)), labels, encoder.info.temperature))

    return [
        _Pair("EmbedImage", "image", embed_image, client.embed_image),
        _Pair(
            "EmbedText",
            "text",
            lambda text: embed_text(text.decode()),
            lambda text: client.embed_text(text.decode()),
        ),
        _Pair("Classify", "image", classify, lambda content: client.classify(content, _LABELS)),
    ]


def _measure(pair: _Pair, plan: Plan) -> _Times:
    progress(pair.name)
    times = _Times([], [])
    items = islice(bodies(pair.modality), _WARM_CALLS + plan.rounds * _CALLS)
    while block := list(islice(items, _CALLS_AT_A_TIME)):
        for call, milliseconds in ((pair.bare, times.bare), (pair.served, times.served)):
            time.sleep(_PAUSE_SECONDS)
            milliseconds += [_milliseconds(call, item) for item in block]
    return _Times(times.bare[_WARM_CALLS:], times.served[_WARM_CALLS:])


def _milliseconds(call: Callable[[bytes], object], item: bytes) -> float:
    start = time.perf_counter()
    call(item)
    return 1e3 * (time.perf_counter() - start)


def _row(name: str, times: _Times) -> tuple[object, ...]:
    p50s = (number(statistics.median(of)) for of in (times.bare, times.served))
    return name, *p50s, f"{times.added_p50:+.2f}", number(statistics.quantiles(times.served, n=100)[98])
