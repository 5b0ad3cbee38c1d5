"""The messages between fronts and the device: plain numbers and text, without pickling.

Integers are little-endian. Each `encode_…` returns a whole message, header included; the `decode_…` of the
same name reads its body and raises ValueError, TypeError or struct.error if it is malformed. Pixels, token
ids and embeddings are not in messages but in shared memory, whose places the messages name.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.backend import AdmissionRequest
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.batching.request import Run
from alignserve_server.errors import FieldViolation, ServingError, error_kinds
from alignserve_server.model.encoder import ModelInfo
from alignserve_server.observability.batch_report import BatchReport

VERSION = 1

# from a front
ADMIT: Final = 1
TEXTS: Final = 2
IMAGES: Final = 3
RELEASE: Final = 4
LOOK_UP: Final = 5
CHECK: Final = 6
# from the device
WELCOME: Final = 32
STATE: Final = 33
ADMITTED: Final = 34
REFUSED: Final = 35
ANSWER: Final = 36
FAILED: Final = 37
DONE: Final = 38
FOUND: Final = 39
CHECKED: Final = 40
CROWDED: Final = 41
REPORT: Final = 42

_HEADER = struct.Struct("<IB")
HEADER_BYTES = _HEADER.size
_HELLO = struct.Struct("<4sIQ")
HELLO_BYTES = _HELLO.size
_MAGIC = b"ALGN"
_ADMIT = struct.Struct("<QIQdB")
_FLOW_BULK, _TEXT, _WAITS, _SAMPLED, _DEADLINE = 1, 2, 4, 8, 16  # flags
_TEXTS = struct.Struct("<QII")
_IMAGES = struct.Struct("<QIHHBI")
_RELEASE = struct.Struct("<QB")
_NUMBER = struct.Struct("<Q")
_CHECK = struct.Struct("<QB")
_ANSWER = struct.Struct("<QddII")
_RELEASE_MESSAGE = struct.Struct("<IBQB")
_NUMBER_MESSAGE = struct.Struct("<IBQ")
_KINDS = {kind.__name__: kind for kind in error_kinds()}

read_header = _HEADER.unpack_from  # (bytes of the body, kind)


class Welcome(NamedTuple):
    """What the device says first."""

    info: ModelInfo
    cached: frozenset[str]  # the modalities that have an embedding cache
    greeting: bytes


class Texts(NamedTuple):
    """Texts to embed. Their tokens are in places of shared memory; the rows come back in the same places."""

    reservation: int
    items: int
    items_per_place: int
    places: list[int]


class Images(NamedTuple):
    """Images to embed. Rows come back in `answer_places`, which may be among `places`."""

    reservation: int
    height: int
    width: int
    places: Sequence[int]  # of each image
    sizes: Sequence[int]  # of each image, as the caller sent it, in bytes
    keys: Sequence[bytes]  # of each image; all of one length
    rows_per_place: int
    answer_places: Sequence[int]


class Answer(NamedTuple):
    """The figures of an answer, whose rows are in shared memory."""

    reservation: int
    queue_seconds: float
    compute_seconds: float
    batch_size: int
    cached_items: int
    runs: frozenset[Run]


def message(kind: int, *parts: bytes) -> bytes:
    """Returns a message whose body is the joined parts."""
    body = b"".join(parts)
    return _HEADER.pack(len(body), kind) + body


def encode_hello(memory_bytes: int) -> bytes:
    """Returns what a front sends first, together with the descriptor of its memory; it has no header."""
    return _HELLO.pack(_MAGIC, VERSION, memory_bytes)


def decode_hello(data: bytes) -> int:
    """Returns the size of a front's memory."""
    magic, version, memory_bytes = _HELLO.unpack(data)
    if (magic, version) != (_MAGIC, VERSION):
        raise ValueError(f"not a front of this version: {data!r}")
    return int(memory_bytes)


def encode_welcome(welcome: Welcome) -> bytes:
    about = json.dumps([asdict(welcome.info), sorted(welcome.cached)]).encode()
    return message(WELCOME, len(about).to_bytes(4, "little"), about, welcome.greeting)


def decode_welcome(body: memoryview) -> Welcome:
    end = 4 + int.from_bytes(body[:4], "little")
    info, cached = json.loads(bytes(body[4:end]))
    return Welcome(ModelInfo(**info), frozenset(cached), bytes(body[end:]))


def encode_admit(reservation: int, request: AdmissionRequest) -> bytes:
    modality, items, size_bytes, flow, deadline, waits_for_room, is_sampled = request
    flags = (
        (_FLOW_BULK if flow.priority is Priority.BULK else 0)
        | (_TEXT if modality == "text" else 0)
        | (_WAITS if waits_for_room else 0)
        | (_SAMPLED if is_sampled else 0)
        | (0 if deadline is None else _DEADLINE)
    )
    fixed = _ADMIT.pack(reservation, items, size_bytes, deadline or 0.0, flags)
    return message(ADMIT, fixed, flow.caller.encode())


def decode_admit(body: memoryview) -> tuple[int, AdmissionRequest]:
    reservation, items, size_bytes, deadline, flags = _ADMIT.unpack_from(body)
    return reservation, AdmissionRequest(
        "text" if flags & _TEXT else "image",
        items,
        size_bytes,
        _flow(flags, body[_ADMIT.size :]),
        deadline if flags & _DEADLINE else None,
        bool(flags & _WAITS),
        bool(flags & _SAMPLED),
    )


def encode_texts(texts: Texts) -> bytes:
    reservation, items, items_per_place, places = texts
    return message(TEXTS, _TEXTS.pack(reservation, items, items_per_place), array("Q", places).tobytes())


def decode_texts(body: memoryview) -> Texts:
    reservation, items, items_per_place = _TEXTS.unpack_from(body)
    return Texts(reservation, items, items_per_place, body[_TEXTS.size :].cast("Q").tolist())


def encode_images(images: Images) -> bytes:
    reservation, height, width, places, sizes, keys, rows_per_place, answer_places = images
    key_bytes = len(keys[0]) if keys else 0
    joined = b"".join(keys)
    if len(joined) != key_bytes * len(places):
        raise ValueError("image keys have different lengths")
    return message(
        IMAGES,
        _IMAGES.pack(reservation, len(places), height, width, key_bytes, rows_per_place),
        array("Q", places).tobytes(),
        array("Q", sizes).tobytes(),
        joined,
        array("Q", answer_places).tobytes(),
    )


def decode_images(body: memoryview) -> Images:
    reservation, items, height, width, key_bytes, rows_per_place = _IMAGES.unpack_from(body)
    starts = [_IMAGES.size + at for at in (0, 8 * items, 16 * items, (16 + key_bytes) * items)]
    joined = bytes(body[starts[2] : starts[3]])
    images = Images(
        reservation,
        height,
        width,
        body[starts[0] : starts[1]].cast("Q").tolist(),
        body[starts[1] : starts[2]].cast("Q").tolist(),
        [joined[at : at + key_bytes] for at in range(0, len(joined), key_bytes)]
        if key_bytes
        else [b""] * items,
        rows_per_place,
        body[starts[3] :].cast("Q").tolist(),
    )
    if not len(images.places) == len(images.sizes) == len(images.keys) == items:
        raise ValueError(f"message of {len(body)} bytes has no room for {items} images")
    return images


def encode_release(reservation: int, *, is_served: bool) -> bytes:
    return _RELEASE_MESSAGE.pack(_RELEASE.size, RELEASE, reservation, is_served)


def decode_release(body: memoryview) -> tuple[int, bool]:
    reservation, is_served = _RELEASE.unpack(body)
    return reservation, bool(is_served)


def encode_look_up(number: int, modality: str, key: bytes) -> bytes:
    return message(LOOK_UP, _CHECK.pack(number, _TEXT if modality == "text" else 0), key)


def decode_look_up(body: memoryview) -> tuple[int, str, bytes]:
    number, flags = _CHECK.unpack_from(body)
    return number, "text" if flags & _TEXT else "image", bytes(body[_CHECK.size :])


def encode_found(number: int, embedding: NDArray[np.float32] | None) -> bytes:
    return message(FOUND, _NUMBER.pack(number), b"" if embedding is None else embedding.tobytes())


def decode_found(body: memoryview) -> tuple[int, NDArray[np.float32] | None]:
    (number,) = _NUMBER.unpack_from(body)
    embedding = np.frombuffer(bytes(body[_NUMBER.size :]), np.float32)
    return number, embedding if embedding.size else None


def encode_check(number: int, flow: Flow) -> bytes:
    flags = _FLOW_BULK if flow.priority is Priority.BULK else 0
    return message(CHECK, _CHECK.pack(number, flags), flow.caller.encode())


def decode_check(body: memoryview) -> tuple[int, Flow]:
    number, flags = _CHECK.unpack_from(body)
    return number, _flow(flags, body[_CHECK.size :])


def encode_number(kind: int, number: int) -> bytes:
    """Encodes `ADMITTED`, `DONE` or `CHECKED`."""
    return _NUMBER_MESSAGE.pack(_NUMBER.size, kind, number)


def decode_number(body: memoryview) -> int:
    (number,) = _NUMBER.unpack(body)
    return int(number)


def encode_answer(answer: Answer) -> bytes:
    reservation, queue_seconds, compute_seconds, batch_size, cached_items, runs = answer
    return message(
        ANSWER,
        _ANSWER.pack(reservation, queue_seconds, compute_seconds, batch_size, cached_items),
        array("Q", [number for run in runs for number in run]).tobytes(),
    )


def decode_answer(body: memoryview) -> Answer:
    numbers = body[_ANSWER.size :].cast("Q").tolist()
    runs = frozenset(zip(numbers[::2], numbers[1::2], strict=True))
    reservation, queue_seconds, compute_seconds, batch_size, cached_items = _ANSWER.unpack_from(body)
    return Answer(reservation, queue_seconds, compute_seconds, batch_size, cached_items, runs)


def encode_error(kind: int, number: int, error: ServingError) -> bytes:
    """Encodes `REFUSED`, `FAILED` or `CROWDED`."""
    violations = [(each.field, each.description, each.reason) for each in error.violations]
    about = {**vars(error), "violations": violations}
    return message(kind, _NUMBER.pack(number), json.dumps([type(error).__name__, about]).encode())


def decode_error(body: memoryview) -> tuple[int, ServingError]:
    (number,) = _NUMBER.unpack_from(body)
    name, about = json.loads(bytes(body[_NUMBER.size :]))
    kind = _KINDS[name]
    error = kind.__new__(kind, about["message"])
    vars(error).update(about, violations=tuple(FieldViolation(*each) for each in about["violations"]))
    return number, error


def encode_report(report: BatchReport, waiting_since: Mapping[int, float]) -> bytes:
    """Encodes a report for the front that made the reservations in `waiting_since`."""
    plain = report._asdict() | {
        "queue_seconds": list(map(float, report.queue_seconds)),
        "waiting_since": list(waiting_since.items()),
        "sampled": (),
    }
    return message(REPORT, json.dumps(plain).encode())


def decode_report(body: memoryview) -> BatchReport:
    plain = json.loads(bytes(body))
    return BatchReport(**plain | {"waiting_since": dict(plain["waiting_since"]), "sampled": ()})


def encode_state(state: str) -> bytes:
    return message(STATE, state.encode())


def decode_state(body: memoryview) -> str:
    return bytes(body).decode()


def _flow(flags: int, caller: memoryview) -> Flow:
    return Flow(bytes(caller).decode(), Priority.BULK if flags & _FLOW_BULK else Priority.INTERACTIVE)
