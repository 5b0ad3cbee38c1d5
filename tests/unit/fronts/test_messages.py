"""Messages between fronts and the device say the same at both ends."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from alignserve_server.batching.backend import AdmissionRequest
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.errors import FieldViolation, InvalidArgument, QueueFull, ServingError, error_kinds
from alignserve_server.fronts import messages
from alignserve_server.model.encoder import ModelInfo
from alignserve_server.observability.batch_report import BatchReport
from hypothesis import given
from hypothesis import strategies as st

_NUMBERS = st.integers(0, 2**32 - 1)
_LARGE = st.integers(0, 2**64 - 1)
_SECONDS = st.floats(0, 1e9)
_FLOWS = st.builds(Flow, st.text(max_size=70), st.sampled_from(Priority))
_REQUESTS = st.builds(
    AdmissionRequest,
    st.sampled_from(["image", "text"]),
    _NUMBERS,
    _LARGE,
    _FLOWS,
    st.none() | _SECONDS,
    st.booleans(),
    st.booleans(),
)
_MALFORMED = (ValueError, TypeError, KeyError, struct.error)  # what decoding may raise

_DECODERS: list[Callable[[memoryview], Any]] = [
    messages.decode_admit,
    messages.decode_texts,
    messages.decode_images,
    messages.decode_release,
    messages.decode_look_up,
    messages.decode_check,
]


def body(message: bytes, kind: int) -> memoryview:
    """Returns the body of a message, whose header must be right."""
    assert messages.read_header(message) == (len(message) - messages.HEADER_BYTES, kind)
    return memoryview(message)[messages.HEADER_BYTES :]


@given(_LARGE, _REQUESTS)
def test_a_request_for_room_arrives_as_sent(reservation: int, request: AdmissionRequest) -> None:
    message = messages.encode_admit(reservation, request)

    assert messages.decode_admit(body(message, messages.ADMIT)) == (reservation, request)


@given(st.builds(messages.Texts, _LARGE, _NUMBERS, _NUMBERS, st.lists(_LARGE, max_size=5)))
def test_texts_arrive_as_sent(texts: messages.Texts) -> None:
    assert messages.decode_texts(body(messages.encode_texts(texts), messages.TEXTS)) == texts


@given(
    st.integers(0, 16).flatmap(
        lambda size: st.lists(st.tuples(_LARGE, _LARGE, st.binary(min_size=size, max_size=size)), max_size=5)
    ),
    st.lists(_LARGE, max_size=3),
)
def test_images_arrive_as_sent(each: list[tuple[int, int, bytes]], answer_places: list[int]) -> None:
    """All keys have the same length, which may be none."""
    places, sizes, keys = [one[0] for one in each], [one[1] for one in each], [one[2] for one in each]
    images = messages.Images(7, 289, 300, places, sizes, keys, 102, answer_places)

    assert messages.decode_images(body(messages.encode_images(images), messages.IMAGES)) == images


def test_image_keys_of_different_lengths_are_refused() -> None:
    images = messages.Images(7, 4, 4, [0, 0], [1, 1], [b"a", b"bc"], 1, [0])

    with pytest.raises(ValueError, match="different lengths"):
        messages.encode_images(images)


@given(
    st.builds(
        messages.Answer,
        _LARGE,
        _SECONDS,
        _SECONDS,
        _NUMBERS,
        _NUMBERS,
        st.frozensets(st.tuples(_LARGE, _LARGE), max_size=4),
    )
)
def test_the_figures_of_an_answer_arrive_as_sent(answer: messages.Answer) -> None:
    assert messages.decode_answer(body(messages.encode_answer(answer), messages.ANSWER)) == answer


@pytest.mark.parametrize("kind", error_kinds())
def test_every_error_arrives_with_all_that_it_says(kind: type[ServingError]) -> None:
    error = kind.__new__(kind, "what happened")
    ServingError.__init__(
        error,
        "what happened",
        violations=[FieldViolation("texts[3]", "too long", "TEXT_TOO_LONG")],
        retry_delay_seconds=0.25,
        metadata={"error_id": "1f"},
    )

    number, found = messages.decode_error(
        body(messages.encode_error(messages.FAILED, 5, error), messages.FAILED)
    )

    assert (number, type(found), found.args) == (5, kind, error.args)
    assert vars(found) == vars(error)


def test_an_error_arrives_with_the_part_at_fault() -> None:
    error = InvalidArgument.in_part(".height", "image has no pixels")

    _, found = messages.decode_error(
        body(messages.encode_error(messages.REFUSED, 5, error), messages.REFUSED)
    )

    assert isinstance(found, InvalidArgument)
    assert found.under("images[0]").violations[0].field == "images[0].height"


def test_an_error_without_delay_arrives_without() -> None:
    error = QueueFull("full")

    _, found = messages.decode_error(
        body(messages.encode_error(messages.REFUSED, 5, error), messages.REFUSED)
    )

    assert found.retry_delay_seconds is None


def test_a_report_arrives_with_the_reservations_of_the_front() -> None:
    report = BatchReport(
        "text", 12.5, 0.25, 0.125, [0.125, 0.5], 0.75, True, {(3 << 32) + 1: 12.0}, [(3 << 32) + 1, 0]
    )

    found = messages.decode_report(body(messages.encode_report(report, {1: 12.0}), messages.REPORT))

    assert found == report._replace(waiting_since={1: 12.0}, sampled=())


def test_the_welcome_describes_the_model() -> None:
    info = ModelInfo("align", "main", "f00", "torch", "float16", "cuda", 640, 0.1, 64, 0.9999)

    welcome = messages.Welcome(info, frozenset({"text"}), b"\0greeting")

    assert messages.decode_welcome(body(messages.encode_welcome(welcome), messages.WELCOME)) == welcome


@pytest.mark.parametrize("row", [np.arange(3, dtype=np.float32), None], ids=["found", "missing"])
def test_a_cached_embedding_arrives_as_stored(row: np.ndarray | None) -> None:
    number, found = messages.decode_found(body(messages.encode_found(9, row), messages.FOUND))

    assert number == 9
    np.testing.assert_equal(found, row)


@given(_LARGE, st.sampled_from(["image", "text"]), st.binary(max_size=300))
def test_a_look_up_arrives_as_sent(number: int, modality: str, key: bytes) -> None:
    message = messages.encode_look_up(number, modality, key)

    assert messages.decode_look_up(body(message, messages.LOOK_UP)) == (number, modality, key)


@given(_LARGE, _FLOWS, st.booleans())
def test_small_messages_arrive_as_sent(number: int, flow: Flow, is_served: bool) -> None:
    check = messages.encode_check(number, flow)
    release = messages.encode_release(number, is_served=is_served)
    done = messages.encode_number(messages.DONE, number)

    assert messages.decode_check(body(check, messages.CHECK)) == (number, flow)
    assert messages.decode_release(body(release, messages.RELEASE)) == (number, is_served)
    assert messages.decode_number(body(done, messages.DONE)) == number


@given(st.sampled_from(_DECODERS), st.binary(max_size=100))
def test_any_bytes_are_decoded_or_refused(decode: Callable[[memoryview], Any], data: bytes) -> None:
    """Nothing else is raised, and no memory is allocated for items that are not there."""
    with suppress(*_MALFORMED):
        decode(memoryview(data))


@given(_REQUESTS, st.data())
def test_a_truncated_request_is_not_taken_for_a_whole_one(
    request: AdmissionRequest, data: st.DataObject
) -> None:
    whole = body(messages.encode_admit(1, request), messages.ADMIT)
    size = data.draw(st.integers(0, len(whole) - len(request.flow.caller.encode()) - 1))

    with pytest.raises(_MALFORMED):
        messages.decode_admit(whole[:size])
