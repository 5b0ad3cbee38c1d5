"""Converts tensors between the protocol and plain values.

An input is either raw, that is bytes in `raw_input_contents`, or typed, that is numbers or bytes in its
`contents`. Everything that its header promises is checked before any element is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from alignserve_server.api import ImageInput, PixelArray
from alignserve_server.errors import BatchTooLarge, InvalidArgument, RequestMalformed, TextTooLong
from alignserve_server.kserve.parameters import Parameters
from alignserve_server.kserve.problems import shown

_LENGTH_BYTES = 4  # before each element of a raw BYTES tensor
_CHANNELS = 3
_MAX_DIMENSIONS = 4  # of a batch of pixels
# Typed numbers are read one by one, which takes 75 ns each and blocks the server.
_MAX_TYPED_PIXELS = 1 << 16

RAW_ONLY = frozenset({"FP16"})  # `contents` has no field for it

_NUMPY: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP16": np.dtype("<f2"),
    "INT32": np.dtype("<i4"),
}
_FIELDS = {"FP32": "fp32_contents", "INT32": "int_contents", "BYTES": "bytes_contents"}


class Texts(Sequence[str]):
    """Strings in UTF-8, decoded whenever they are read: many take long, and are read in a thread."""

    def __init__(self, name: str, elements: Sequence[bytes]) -> None:
        self.elements = elements
        self._name = name

    def __len__(self) -> int:
        return len(self.elements)

    @overload
    def __getitem__(self, position: int) -> str: ...

    @overload
    def __getitem__(self, position: slice) -> Texts: ...

    def __getitem__(self, position: int | slice) -> str | Texts:
        """Returns a string. Raises `InvalidArgument` if it is not UTF-8."""
        if isinstance(position, slice):
            return Texts(self._name, self.elements[position])
        try:
            return self.elements[position].decode()
        except UnicodeDecodeError:
            message = "not UTF-8; send text in UTF-8"
            raise InvalidArgument.at(f"{self._name}[{position}]", message) from None


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input of a request, not yet decoded."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | None
    contents: Any  # `InferTensorContents`; unused if there are raw bytes

    def images(self, limit: int) -> list[ImageInput]:
        """Returns encoded images, from BYTES, or pixels, from UINT8.

        Raises:
            InvalidArgument: The tensor is not one of images, or has more of them than the limit.
        """
        if self.datatype == "UINT8":
            return list(self._pixels(limit))
        return list(self._elements(limit, "BYTES of encoded files or UINT8 of pixels"))

    def texts(self, limit: int, max_bytes: int, too_many: type[InvalidArgument] = BatchTooLarge) -> Texts:
        """Returns the strings of a BYTES tensor.

        Raises:
            InvalidArgument: The tensor is not one of strings; it has more of them than the limit, which is
                `too_many`; or one has more than `max_bytes`.
        """
        elements = self._elements(limit, "BYTES", too_many)
        for position, size in enumerate(map(len, elements)):
            if size > max_bytes:
                raise TextTooLong.at(
                    f"{self.name}[{position}]", f"text has {size} bytes, limit {max_bytes}; shorten it"
                )
        return Texts(self.name, elements)

    def _elements(
        self, limit: int, expected: str, too_many: type[InvalidArgument] = BatchTooLarge
    ) -> Sequence[bytes]:
        if self.datatype != "BYTES":
            raise self._error(f"datatype {shown(self.datatype)} does not fit; send {expected}")
        if len(self.shape) not in (1, 2) or self.shape[1:] not in ((), (1,)):
            raise self._error(f"shape {_shape(self.shape)} does not fit; send [N] or [N, 1]")
        count = self._count(limit, too_many)
        if self.raw is not None:
            return split_bytes(self.raw, count, self.name)
        elements: Sequence[bytes] = list(self._typed("bytes_contents"))
        self._check_length(len(elements), count, "elements")
        return elements

    def _pixels(self, limit: int) -> Iterator[PixelArray]:
        if len(self.shape) != 4 or self.shape[3] != _CHANNELS:
            raise self._error(
                f"shape {_shape(self.shape)} does not fit; send [N, height, width, 3] for UINT8 pixels"
            )
        count, height, width, _ = self.shape
        self._count(limit)
        size = height * width * _CHANNELS
        data = self._raw_pixels(count * size) if self.raw is None else self.raw
        self._check_length(len(data), count * size, "bytes")
        for position in range(count):
            yield PixelArray(height, width, data[position * size : (position + 1) * size])

    def _raw_pixels(self, size: int) -> bytes:
        numbers = self._typed("uint_contents")
        if len(numbers) > _MAX_TYPED_PIXELS:
            raise self._error(
                f"{len(numbers)} numbers in uint_contents, limit {_MAX_TYPED_PIXELS}; use raw_input_contents"
            )
        self._check_length(len(numbers), size, "numbers")
        try:
            return bytes(numbers)
        except ValueError:
            raise self._error("a number in uint_contents is above 255; UINT8 has from 0 to 255") from None

    def _count(self, limit: int, too_many: type[InvalidArgument] = BatchTooLarge) -> int:
        """Returns the first dimension. The others have been checked, except for their sign."""
        if any(dimension < 0 for dimension in self.shape):
            raise self._error(f"shape {_shape(self.shape)} has a negative dimension; send the real one")
        count = self.shape[0]
        if count > limit:
            raise too_many.at(self.name, f"{count} elements, limit {limit}; send fewer per request")
        return count

    def _typed(self, field: str) -> Any:
        """Returns the field of `contents` that fits the datatype; the others must be empty."""
        for other, _ in self.contents.ListFields():
            if other.name != field:
                raise self._error(f"contents has {other.name}; {self.datatype} goes into {field}")
        return getattr(self.contents, field)

    def _check_length(self, length: int, expected: int, unit: str) -> None:
        if length != expected:
            raise self._error(f"{length} {unit}, but shape {_shape(self.shape)} has {expected}; send as many")

    def _error(self, message: str) -> InvalidArgument:
        return InvalidArgument.at(self.name, message)


def read_inputs(request: Any) -> dict[str, InputTensor]:
    """Returns the inputs of a `ModelInferRequest` by name.

    Raises:
        InvalidArgument: An input is given twice, or has parameters that it cannot have.
        RequestMalformed: Raw and typed contents are mixed, or there is no raw entry for each input.
    """
    raw = request.raw_input_contents
    if raw:
        _check_raw(request)
    inputs: dict[str, InputTensor] = {}
    for position, given in enumerate(request.inputs):
        if given.name in inputs:
            raise InvalidArgument.at("inputs", f"{shown(given.name)} is given twice; send each input once")
        Parameters(given.parameters, (), f"inputs[{position}].parameters")
        inputs[given.name] = InputTensor(
            given.name,
            given.datatype,
            _shape_of(given, f"inputs[{position}].shape"),
            raw[position] if raw else None,
            given.contents,
        )
    return inputs


def split_bytes(raw: bytes, count: int, name: str) -> list[bytes]:
    """Returns the elements of a raw BYTES tensor: each follows its length, 4 bytes, little-endian.

    Raises:
        InvalidArgument: The bytes are not exactly those of `count` elements.
    """
    elements, position = [], 0
    for index in range(count):
        start = position + _LENGTH_BYTES
        position = start + int.from_bytes(raw[position:start], "little")
        if start > len(raw) or position > len(raw):
            raise InvalidArgument.at(
                f"{name}[{index}]",
                f"the {len(raw)} raw bytes end within it; each element is its length in 4 bytes, "
                "little-endian, and its bytes",
            )
        elements.append(raw[start:position])
    if position != len(raw):
        raise InvalidArgument.at(
            name, f"{len(raw) - position} raw bytes are left after {count} elements; the shape must count all"
        )
    return elements


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """Returns the raw form of a BYTES tensor; see `split_bytes`."""
    return b"".join(
        part for element in elements for part in (len(element).to_bytes(_LENGTH_BYTES, "little"), element)
    )


def add_output(
    response: Any, name: str, datatype: str, values: NDArray[Any] | Sequence[Sequence[bytes]], *, is_raw: bool
) -> Any:
    """Adds an output to a `ModelInferResponse` and returns its header.

    Args:
        response: The response; its outputs are either all raw or all typed.
        name: Name of the output.
        datatype: FP32, FP16, INT32, or BYTES.
        values: An array, or for BYTES the elements of each image, of which all have the same number.
        is_raw: Whether the elements go into `raw_output_contents`.
    """
    if isinstance(values, np.ndarray):
        shape: Sequence[int] = values.shape
        packed = values.astype(_NUMPY[datatype], copy=False)
        flat: Any = packed.tobytes() if is_raw else packed.ravel().tolist()
    else:
        shape = (len(values), len(values[0]))
        elements = [element for row in values for element in row]
        flat = join_bytes(elements) if is_raw else elements
    tensor = response.outputs.add(name=name, datatype=datatype, shape=shape)
    if is_raw:
        response.raw_output_contents.append(flat)
    else:
        getattr(tensor.contents, _FIELDS[datatype]).extend(flat)
    return tensor


def _check_raw(request: Any) -> None:
    if len(request.raw_input_contents) != len(request.inputs):
        raise RequestMalformed.at(
            "raw_input_contents",
            f"{len(request.raw_input_contents)} entries for {len(request.inputs)} inputs; send one for each",
        )
    for position, given in enumerate(request.inputs):
        if given.contents.ListFields():
            raise RequestMalformed.at(
                f"inputs[{position}].contents",
                "raw_input_contents is used as well; send all inputs in one of the two",
            )


def _shape_of(given: Any, path: str) -> tuple[int, ...]:
    if len(given.shape) > _MAX_DIMENSIONS:  # errors repeat the shape
        raise InvalidArgument.at(path, f"{len(given.shape)} dimensions, limit {_MAX_DIMENSIONS}")
    return tuple(given.shape)


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
