"""What a front puts into shared memory: decoded images, token ids, and the room for their embeddings.

Images are decoded straight into places while there are some. The others are copied, when they are to be
embedded, into places kept for copies, for which requests wait in order. Embeddings replace the inputs that
they were computed from.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.backend import PreparedItems
from alignserve_server.errors import BatchTooLarge, ServingError
from alignserve_server.fronts.memory import (
    TEXT_HEAD_BYTES,
    FairPlaces,
    Places,
    max_text_bytes,
    pixels_at,
    rows_at,
    whole_pages,
    write_texts,
)
from alignserve_server.fronts.messages import Images, Texts
from alignserve_server.model.encoder import ModelInfo, PixelValues, TokenIds

_TEXT_PLACE_BYTES = 256 << 10
_TEXT_SHARE, _DECODING_SHARE = 1 / 8, 5 / 8  # of the memory; the rest is for copies of images


class Lease(NamedTuple):
    """The places of a request, which the device may read and write until it has answered."""

    rows: int
    rows_per_place: int
    answer_places: Sequence[int]
    decoded: Sequence[int]  # places to give back
    copied: Sequence[int]  # as above
    texts: Sequence[int]  # as above


class _ImagePlaces(NamedTuple):
    """The places of images, all of which have one shape."""

    shape: tuple[int, ...]
    decoding: Places
    copies: FairPlaces


class FrontMemory:
    """Divides a front's memory. Use only on the event loop's thread, except for `new_pixels`."""

    def __init__(self, memory: mmap.mmap, info: ModelInfo) -> None:
        """Starts with all places free; those of images are made when the first image is decoded."""
        self._memory = memory
        self._dimension = info.embedding_dimension
        self._row_bytes = 4 * self._dimension
        text_bytes = max(self._row_bytes, max_text_bytes(info) + TEXT_HEAD_BYTES)
        place_bytes = whole_pages(max(_TEXT_PLACE_BYTES, text_bytes))
        self._texts_per_place = place_bytes // text_bytes
        self._texts_end = whole_pages(int(len(memory) * _TEXT_SHARE))
        self._texts = FairPlaces(Places(memory, 0, self._texts_end, place_bytes))
        self._images: _ImagePlaces | None = None
        self._dividing = threading.Lock()
        self._decoded: dict[int, tuple[int, weakref.ref[PixelValues]]] = {}  # places by array

    def new_pixels(self, shape: tuple[int, ...]) -> PixelValues:
        """Returns an uninitialized array, in shared memory if there is a place. Thread-safe.

        The place is free again when the array is, unless the array has been embedded.
        """
        images = self._image_places(shape)
        place = images.decoding.take() if images.shape == shape else None
        if place is None:
            return np.empty(shape, np.uint8)
        pixels = pixels_at(self._memory, place, shape)
        key, decoded = id(pixels), self._decoded

        def died(_: weakref.ref[PixelValues], place: int = place) -> None:
            if decoded.pop(key, None) is not None:
                images.decoding.give_back(place)

        decoded[key] = place, weakref.ref(pixels, died)
        return pixels

    def check_fits(self, modality: str, items: int) -> None:
        """Raises BatchTooLarge if there are fewer places in total."""
        if modality == "text":
            limit = self._texts.count * self._texts_per_place
        elif self._images is not None:
            limit = self._images.copies.count
        else:
            return
        if items > limit:
            raise BatchTooLarge(f"{items} {modality}s, limit {limit}; send fewer at once")

    async def place_texts(self, reservation: int, items: PreparedItems) -> tuple[Texts, Lease]:
        """Puts texts into places, for which it may have to wait."""
        payloads: Sequence[TokenIds] = items.payloads  # type: ignore[assignment]  # of one modality
        sizes = items.sizes
        number, per_place = len(payloads), self._texts_per_place
        count = -(-number // per_place)
        places = self._texts.take_now(count) or await self._texts.take(count)
        for place, at in zip(places, range(0, number, per_place), strict=True):
            part = slice(at, at + per_place)
            write_texts(self._memory, place, payloads[part], sizes[part])
        return (
            Texts(reservation, number, per_place, places),
            Lease(number, per_place, places, (), (), places),
        )

    async def place_images(self, reservation: int, items: PreparedItems) -> tuple[Images, Lease]:
        """Puts images into places, unless they were decoded there."""
        payloads: Sequence[PixelValues] = items.payloads  # type: ignore[assignment]  # of one modality
        sizes, keys = items.sizes, items.keys
        height, width, _ = payloads[0].shape
        images = self._image_places(payloads[0].shape)
        self.check_fits("image", len(payloads))
        distinct = {id(pixels): pixels for pixels in payloads}
        outside = [key for key in distinct if key not in self._decoded]
        rows_per_place = images.copies.place_bytes // self._row_bytes
        for_answer = -(-len(payloads) // rows_per_place)
        count = max(len(outside), for_answer - len(distinct) + len(outside))
        copied = (images.copies.take_now(count) or await images.copies.take(count)) if count else []
        place_of = {key: self._decoded.pop(key)[0] for key in distinct if key in self._decoded}
        decoded = list(place_of.values())
        for key, place in zip(outside, copied, strict=False):
            pixels_at(self._memory, place, images.shape)[:] = distinct[key]
            place_of[key] = place
        places = [place_of[id(pixels)] for pixels in payloads]
        answer_places = [*decoded, *copied][:for_answer]
        return (
            Images(
                reservation, height, width, places, list(sizes), list(keys), rows_per_place, answer_places
            ),
            Lease(len(payloads), rows_per_place, answer_places, decoded, copied, ()),
        )

    def read_answer(self, lease: Lease) -> NDArray[np.float32]:
        """Returns a copy of the embeddings that the device has written: (items, embedding_dimension)."""
        rows = np.empty((lease.rows, self._dimension), np.float32)
        for place, at in zip(lease.answer_places, range(0, lease.rows, lease.rows_per_place), strict=True):
            part = rows[at : at + lease.rows_per_place]
            part[:] = rows_at(self._memory, place, len(part), self._dimension)
        return rows

    def give_back(self, lease: Lease) -> None:
        """Frees the places of a request that the device no longer reads."""
        if lease.texts:
            self._texts.give_back(lease.texts)
            return
        assert self._images is not None  # noqa: S101 — for the type checker
        for place in lease.decoded:
            self._images.decoding.give_back(place)
        self._images.copies.give_back(lease.copied)

    def fail_waiting(self, error: Callable[[], ServingError]) -> None:
        """Fails all requests that wait for places."""
        self._texts.fail_waiting(error)
        if self._images is not None:
            self._images.copies.fail_waiting(error)

    def _image_places(self, shape: tuple[int, ...]) -> _ImagePlaces:
        if self._images is None:
            with self._dividing:
                if self._images is None:
                    self._images = self._divide(shape)
        return self._images

    def _divide(self, shape: tuple[int, ...]) -> _ImagePlaces:
        memory, start, end = self._memory, self._texts_end, len(self._memory)
        middle = whole_pages(start + int(end * _DECODING_SHARE))
        place_bytes = whole_pages(max(int(np.prod(shape)), self._row_bytes))
        return _ImagePlaces(
            shape,
            Places(memory, start, middle, place_bytes),
            FairPlaces(Places(memory, middle, end, place_bytes)),
        )
