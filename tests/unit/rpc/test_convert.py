"""Results are converted to messages unchanged."""

from __future__ import annotations

from dataclasses import fields

from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.api import ModelInfo, RequestLimits, ServiceInfo, TokenizedText
from alignserve_server.rpc import convert


def test_unknown_tokens_are_counted_per_text() -> None:
    """Each text's tokenization contains its own count."""
    texts = [TokenizedText((2, 1, 1, 3), unknown_token_count=2), TokenizedText((2, 9, 3), truncated=True)]

    told = convert.tokenizations(texts)

    assert [(one.token_count, one.truncated, one.unknown_token_count) for one in told] == [
        (4, False, 2),
        (3, True, 0),
    ]


def test_each_field_of_the_model_info_has_a_value_of_the_same_name() -> None:
    """This way every limit is published."""
    published = {field.name for field in pb.GetModelInfoResponse.DESCRIPTOR.fields}
    named = [field.name for kind in (ModelInfo, RequestLimits) for field in fields(kind)]

    assert sorted([*named, "server_version"]) == sorted(published)


def test_the_model_info_carries_all_values() -> None:
    """The message contains model, limits and version."""
    model = ModelInfo("align", "main", "abc", "fake", "float32", "cpu", 640, 0.5, 64, 1.0)
    limits = RequestLimits(1, 2, 3, 4, 5, 6, 7, 8, 9, ("JPEG",))

    told = convert.model_info(ServiceInfo(model, limits, "1.2.3"))

    assert (told.model_id, told.temperature, told.server_version) == ("align", 0.5, "1.2.3")
    assert (told.max_client_batch_size, told.max_stream_in_flight) == (1, 9)
    assert list(told.image_formats) == ["JPEG"]
