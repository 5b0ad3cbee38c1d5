"""The tables of fields are true: what is read, ignored and refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from alignserve_server.http import cohere, huggingface, openai, tei, weaviate
from alignserve_server.http.field_table import Field

from tests.integration.http.dialects import IMAGE
from tests.integration.http.ports import serving

TABLES: dict[str, tuple[str, Iterable[Field], dict[str, Any]]] = {
    "openai": ("/v1/embeddings", openai.FIELDS, {"input": "a cat"}),
    "cohere": ("/v2/embed", cohere.FIELDS, {"texts": ["a cat"]}),
    "tei embed": ("/embed", tei.EMBED_FIELDS, {"inputs": "a cat"}),
    "tei similarity": (
        "/similarity",
        tei.SIMILARITY_FIELDS,
        {"inputs": {"source_sentence": "a cat", "sentences": ["a dog"]}},
    ),
    "weaviate": ("/vectorize", weaviate.FIELDS, {"texts": ["a cat"]}),
    "extraction": (
        "/pipeline/feature-extraction",
        huggingface.EXTRACTION_FIELDS,
        {"inputs": "a cat"},
    ),
    "classification": (
        "/pipeline/zero-shot-image-classification",
        huggingface.CLASSIFICATION_FIELDS,
        {"inputs": IMAGE, "parameters": {"candidate_labels": ["cat", "dog"]}},
    ),
    "similarity": (
        "/pipeline/sentence-similarity",
        huggingface.SIMILARITY_FIELDS,
        {"inputs": {"source_sentence": "a cat", "sentences": ["a dog"]}},
    ),
}  # path, table and a body, by name

ROWS = [
    pytest.param(path, field, body, id=f"{name}-{field.name}")
    for name, (path, table, body) in TABLES.items()
    for field in table
]
ALTERNATIVES = {"messages": "input", "images": "texts", "inputs": "texts"}  # fields that replace another


def _with(body: dict[str, Any], field: Field, value: Any) -> dict[str, Any]:
    """Returns the body with a value in a field, in place of the field that it replaces."""
    *parents, name = field.name.split(".")
    changed: dict[str, Any] = {**body}
    if ALTERNATIVES.get(field.name) in changed and "imageVectors" not in changed:
        del changed[ALTERNATIVES[field.name]]
    at = changed
    for parent in parents:
        at[parent] = {**at.get(parent, {})}
        at = at[parent]
    at[name] = value
    return changed


@pytest.mark.parametrize(("path", "field", "body"), ROWS)
async def test_each_field_is_treated_as_its_row_says(path: str, field: Field, body: dict[str, Any]) -> None:
    """What is ignored changes nothing, what is refused is named, and null is always as if absent."""
    async with serving() as (_, client):
        plain = await client.post(path, json=body)
        changed = await client.post(path, json=_with(body, field, field.example))
        absent = await client.post(path, json=_with(body, field, None))

    assert plain.status_code == 200
    if field.treatment == "refused":
        assert changed.status_code == 400
        assert f"{field.name}: " in changed.text
    else:
        assert changed.status_code == 200, changed.text
    if field.treatment == "ignored":
        assert _vectors(changed) == _vectors(plain)
    if not field.is_required and field.name not in body and field.name not in ALTERNATIVES:
        assert _vectors(absent) == _vectors(plain)


def _vectors(answer: Any) -> Any:
    found = answer.json()
    return {**found, "id": None} if isinstance(found, dict) else found
