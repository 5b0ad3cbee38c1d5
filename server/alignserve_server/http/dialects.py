"""The dialects of other embedding servers, and the document that describes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from alignserve_server.api import Service
from alignserve_server.http import cohere, huggingface, openai, tei, weaviate
from alignserve_server.http.cohere import Cohere
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.field_table import Field
from alignserve_server.http.huggingface import HuggingFace
from alignserve_server.http.message_schema import ConnectDescription
from alignserve_server.http.openai import OpenAI
from alignserve_server.http.openapi import OpenApi
from alignserve_server.http.tei import TextEmbeddingsInference
from alignserve_server.http.weaviate import Weaviate

# Of the documentation's tables, by name.
FIELD_TABLES: Mapping[str, Sequence[Field]] = {
    "openai": openai.FIELDS,
    "cohere": cohere.FIELDS,
    "tei-embed": tei.EMBED_FIELDS,
    "tei-similarity": tei.SIMILARITY_FIELDS,
    "weaviate": weaviate.FIELDS,
    "huggingface-classification": huggingface.CLASSIFICATION_FIELDS,
    "huggingface-extraction": huggingface.EXTRACTION_FIELDS,
    "huggingface-similarity": huggingface.SIMILARITY_FIELDS,
}


def dialect_endpoints(service: Service) -> Iterator[Endpoint]:
    """Yields the endpoints of all dialects."""
    dialects = (
        OpenAI(service),
        Cohere(service),
        TextEmbeddingsInference(service),
        Weaviate(service),
        HuggingFace(service),
    )
    for dialect in dialects:
        yield from dialect.endpoints()
    yield from OpenApi(service, (ConnectDescription(), *dialects)).endpoints()
