"""The tables of fields are true: the server treats each field as its row says."""

from __future__ import annotations

from typing import Any

import pytest
from alignserve_server.http.dialects import FIELD_TABLES
from alignserve_server.http.field_table import Field

from tests.integration.http.dialects import IMAGE
from tests.integration.http.ports import Shared, in_module_loop

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/embeddings", {"input": "a cat"}),
    "cohere": ("/v2/embed", {"texts": ["a cat"]}),
    "tei-embed": ("/embed", {"inputs": "a cat"}),
    "tei-similarity": ("/similarity", {"inputs": {"source_sentence": "a cat", "sentences": ["a dog"]}}),
    "weaviate": ("/vectorize", {"texts": ["a cat"]}),
    "huggingface-extraction": ("/pipeline/feature-extraction", {"inputs": "a cat"}),
    "huggingface-classification": (
        "/pipeline/zero-shot-image-classification",
        {"inputs": IMAGE, "parameters": {"candidate_labels": ["cat", "dog"]}},
    ),
    "huggingface-similarity": (
        "/pipeline/sentence-similarity",
        {"inputs": {"source_sentence": "a cat", "sentences": ["a dog"]}},
    ),
}  # path and body, by table

ROWS = [
    pytest.param(*REQUESTS[name], field, id=f"{name}-{field.name}")
    for name, table in FIELD_TABLES.items()
    for field in table
]
ALTERNATIVES = {"messages": "input", "images": "texts", "inputs": "texts"}  # fields that replace another


def _with(body: dict[str, Any], field: Field, value: Any) -> dict[str, Any]:
    """Returns the body with a value in a field, in place of the field that it replaces."""
    *parents, name = field.name.split(".")
    changed: dict[str, Any] = {**body}
    if ALTERNATIVES.get(field.name) in changed:
        del changed[ALTERNATIVES[field.name]]
    at = changed
    for parent in parents:
        at[parent] = {**at.get(parent, {})}
        at = at[parent]
    at[name] = value
    return changed


@in_module_loop
@pytest.mark.parametrize(("path", "body", "field"), ROWS)
async def test_each_field_is_treated_as_its_row_says(
    shared: Shared, path: str, body: dict[str, Any], field: Field
) -> None:
    """Ignored fields change nothing, refused ones are named, and null is the same as absent."""
    _, client = shared
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
