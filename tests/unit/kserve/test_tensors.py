"""Tensors on the wire: every array survives, and nothing that does not fit its header is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from alignserve_server.api import PixelArray
from alignserve_server.errors import BatchTooLarge, InvalidArgument, LabelsInvalid, TextTooLong
from alignserve_server.kserve.messages import ModelInferRequest, ModelInferResponse
from alignserve_server.kserve.tensors import InputTensor, add_output, join_bytes, read_inputs, split_bytes
from hypothesis import given
from hypothesis import strategies as st

_ELEMENTS = st.lists(st.binary(max_size=40), max_size=8)
_DIMENSION = st.integers(-(2**63), 2**63 - 1)


def tensor(datatype: str, *shape: int, raw: bytes | None = None, **contents: Any) -> InputTensor:
    """Makes an input named x, through the message that it would be sent in."""
    header = {"name": "x", "datatype": datatype, "shape": shape, "contents": contents}
    request = ModelInferRequest(inputs=[header], raw_input_contents=[] if raw is None else [raw])
    return read_inputs(request)["x"]


@given(_ELEMENTS)
def test_raw_elements_survive(elements: list[bytes]) -> None:
    """Splitting is the inverse of joining, whatever bytes the elements have."""
    assert split_bytes(join_bytes(elements), len(elements), "x") == elements


@given(st.binary(max_size=60), st.integers(0, 12))
def test_raw_bytes_are_read_completely_or_refused(raw: bytes, count: int) -> None:
    """Any bytes are either exactly that many elements, or refused."""
    try:
        elements = split_bytes(raw, count, "x")
    except InvalidArgument:
        return
    assert len(elements) == count
    assert join_bytes(elements) == raw


@given(_ELEMENTS, st.data())
def test_truncated_raw_bytes_are_refused(elements: list[bytes], data: st.DataObject) -> None:
    """No proper beginning of a tensor is taken for the whole."""
    raw = join_bytes(elements)
    cut = data.draw(st.integers(0, max(0, len(raw) - 1)))
    if raw:
        with pytest.raises(InvalidArgument):
            split_bytes(raw[:cut], len(elements), "x")


@given(
    st.sampled_from(["BYTES", "UINT8", "FP32", ""]),
    st.lists(_DIMENSION, max_size=6),
    st.one_of(st.none(), st.binary(max_size=60)),
    st.lists(st.binary(max_size=4), max_size=4),
    st.lists(st.integers(0, 2**32 - 1), max_size=12),
)
def test_no_header_makes_anything_but_a_refusal(
    datatype: str, shape: list[int], raw: bytes | None, elements: list[bytes], numbers: list[int]
) -> None:
    """Shapes that overflow, are negative or do not fit, and wrong datatypes, are refused and cost nothing."""
    contents = {} if raw is not None else {"bytes_contents": elements, "uint_contents": numbers}
    for read in (InputTensor.images, lambda given_tensor, limit: given_tensor.texts(limit, 9)):
        try:
            values = read(tensor(datatype, *shape, raw=raw, **contents), 64)
        except InvalidArgument:
            continue
        assert len(values) == shape[0] <= 64


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_batches_have_one_dimension_or_a_second_of_one(shape: tuple[int, ...]) -> None:
    """Triton's clients send [N, 1]."""
    given_typed = tensor("BYTES", *shape, bytes_contents=[b"a", b"b"])
    given_raw = tensor("BYTES", *shape, raw=join_bytes([b"a", b"b"]))

    assert list(given_typed.texts(64, 9)) == list(given_raw.texts(64, 9)) == ["a", "b"]


@pytest.mark.parametrize(
    ("given_tensor", "complaint"),
    [
        (tensor("BYTES", 2, 2, raw=join_bytes([b"a"] * 4)), "[2, 2] does not fit; send [N] or [N, 1]"),
        (tensor("BYTES", raw=b""), "[] does not fit"),
        (tensor("BYTES", -1, raw=b""), "negative dimension"),
        (tensor("BYTES", 1, bytes_contents=[b"a", b"b"]), "2 elements, but shape [1] has 1"),
        (
            tensor("BYTES", 1, fp32_contents=[1.0]),
            "contents has fp32_contents; BYTES goes into bytes_contents",
        ),
        (tensor("BYTES", 1, raw=join_bytes([b"a"]) + b"?"), "1 raw bytes are left after 1 elements"),
        (tensor("FP32", 1, raw=bytes(4)), "datatype 'FP32' does not fit"),
        (tensor("UINT8", 2, 2, raw=bytes(4)), "send [N, height, width, 3]"),
        (tensor("UINT8", 1, 2, 2, 4, raw=bytes(16)), "send [N, height, width, 3]"),
        (tensor("UINT8", 1, 2, 2, 3, raw=bytes(11)), "11 bytes, but shape [1, 2, 2, 3] has 12"),
        (tensor("UINT8", 1, 2**40, 2**40, 3, raw=bytes(12)), "12 bytes, but shape"),
        (tensor("UINT8", 1, 1, 1, 3, uint_contents=[1, 2, 256]), "above 255"),
        (tensor("UINT8", 1, 1, 1, 3, uint_contents=[1, 2]), "2 numbers, but shape [1, 1, 1, 3] has 3"),
        (tensor("UINT8", 1, 1, 1, 3, uint_contents=[0] * ((1 << 16) + 1)), "use raw_input_contents"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given_tensor: InputTensor, complaint: str) -> None:
    """The complaint names the input, what it has and what it should have."""
    with pytest.raises(InvalidArgument) as caught:
        given_tensor.images(64)

    assert caught.value.message.startswith("x")
    assert complaint in caught.value.message


def test_the_number_of_elements_is_limited_before_they_are_read() -> None:
    """A shape that promises more than the limit is refused, whatever follows."""
    promising = tensor("BYTES", 2**62, raw=b"")

    with pytest.raises(BatchTooLarge):
        promising.texts(64, 9)
    with pytest.raises(LabelsInvalid):
        promising.texts(64, 9, LabelsInvalid)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.data())
def test_pixels_are_split_into_images(count: int, height: int, width: int, data: st.DataObject) -> None:
    """Each image has its own rows, whether they were sent raw or typed."""
    size = count * height * width * 3
    pixels = data.draw(st.binary(min_size=size, max_size=size))
    shape = (count, height, width, 3)

    raw = tensor("UINT8", *shape, raw=pixels).images(64)
    typed = tensor("UINT8", *shape, uint_contents=pixels).images(64)

    assert raw == typed
    array = np.frombuffer(pixels, np.uint8).reshape(shape)
    assert raw == [PixelArray(height, width, array[position].tobytes()) for position in range(count)]


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3), min_size=1, max_size=4)
)
def test_raw_and_typed_outputs_have_the_same_numbers(rows: list[list[float]]) -> None:
    """Floats survive both forms exactly, in row-major order."""
    values = np.array(rows, np.float32)
    raw, typed = ModelInferResponse(), ModelInferResponse()

    add_output(raw, "y", "FP32", values, is_raw=True)
    add_output(typed, "y", "FP32", values, is_raw=False)

    assert list(raw.outputs[0].shape) == list(typed.outputs[0].shape) == list(values.shape)
    np.testing.assert_array_equal(np.frombuffer(raw.raw_output_contents[0], "<f4"), values.ravel())
    np.testing.assert_array_equal(
        np.array(typed.outputs[0].contents.fp32_contents, np.float32), values.ravel()
    )


def test_texts_are_limited_and_decoded_when_they_are_read() -> None:
    """The size is checked at once, and UTF-8 when it is needed, with the element's position."""
    with pytest.raises(TextTooLong, match=r"x\[1\]: text has 3 bytes, limit 2"):
        tensor("BYTES", 2, raw=join_bytes([b"ab", b"abc"])).texts(64, 2)
    texts = tensor("BYTES", 2, raw=join_bytes([b"ab", b"\xff"])).texts(64, 2)

    assert (len(texts), texts[0], list(texts[:1])) == (2, "ab", ["ab"])
    with pytest.raises(InvalidArgument, match=r"x\[1\]: not UTF-8"):
        list(texts)
