"""No response is larger than the bound that was checked before the work."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from alignserve_server.api import ScoredLabel
from alignserve_server.kserve.inference import _arrays_bytes, _response, _scores_bytes
from alignserve_server.kserve.messages import ModelInferRequest
from alignserve_server.kserve.models import CLASSIFY, COMPARE, IMAGE, Model
from alignserve_server.kserve.query import Query, read_query
from alignserve_server.kserve.scores import ScoreTable
from alignserve_server.model.fake import FakeEncoder
from hypothesis import given
from hypothesis import strategies as st

_ID = st.text(max_size=200)


def query_of(model: Model, request_id: str, is_raw: bool, outputs: dict[str, int]) -> Query:
    """Reads a request for these outputs, with as many classes each as the number says."""
    asked: list[dict[str, Any]] = [
        {"name": name, "parameters": {"classification": {"int64_param": count}} if count else {}}
        for name, count in outputs.items()
    ]
    headers = [{"name": tensor.name, "datatype": "BYTES", "shape": [1]} for tensor in model.inputs]
    raw = [b""] * len(headers) if is_raw else []
    request = ModelInferRequest(id=request_id, inputs=headers, outputs=asked, raw_input_contents=raw)
    return read_query(model, request)


@given(_ID, st.booleans(), st.integers(1, 9), st.sets(st.sampled_from(["embedding", "embedding_fp16"])))
def test_embeddings_fit_their_bound(request_id: str, is_raw: bool, rows: int, names: set[str]) -> None:
    """With any outputs, raw or typed."""
    info = dataclasses.replace(FakeEncoder().info, embedding_dimension=16)
    query = query_of(IMAGE, request_id, is_raw, dict.fromkeys(sorted(names), 0))
    values = np.full((rows, 16), -1 / 3, np.float32)

    response = _response(query, dict.fromkeys(query.outputs, values))

    assert response.ByteSize() <= _arrays_bytes(query, rows, info)


@given(_ID, st.booleans(), st.integers(1, 9))
def test_comparisons_fit_their_bound(request_id: str, is_raw: bool, rows: int) -> None:
    """One number per pair and output."""
    query = query_of(COMPARE, request_id, is_raw, {})
    values = np.full(rows, -1 / 3, np.float32)

    response = _response(query, dict.fromkeys(query.outputs, values))

    assert response.ByteSize() <= _arrays_bytes(query, rows, FakeEncoder().info)


@given(
    _ID,
    st.booleans(),
    st.integers(1, 4),
    st.lists(st.text(max_size=30), min_size=1, max_size=12),
    st.integers(0, 14),
    st.dictionaries(st.sampled_from(["scores", "similarity", "logits"]), st.integers(0, 14), max_size=3),
)
def test_scores_and_classes_fit_their_bound(
    request_id: str, is_raw: bool, rows: int, labels: list[str], top_k: int, outputs: dict[str, int]
) -> None:
    """With any number of labels, of which the best may be the longest."""
    query = query_of(CLASSIFY, request_id, is_raw, outputs)
    encoded = [label.encode() for label in labels]
    longest_first = sorted(range(len(labels)), key=lambda index: -len(encoded[index]))
    scored = [ScoredLabel(index, 1.2345678e-38, -1.2345678e-38, -1.2345678e-38) for index in longest_first]
    table = ScoreTable(rows, len(labels), top_k, query.outputs)
    for _ in range(rows):
        table.add(labels, scored[: top_k or None])

    response = _response(query, table.outputs())

    assert response.ByteSize() <= _scores_bytes(query, rows, encoded, top_k, FakeEncoder().info)
