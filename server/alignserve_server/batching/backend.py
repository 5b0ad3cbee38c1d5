"""The interface between the code that prepares inputs and the code that embeds them.

A front prepares inputs: it decodes images to uint8 pixels and tokenizes texts to token ids. A backend owns
everything that the fronts share: admission, queues, scheduler, lanes and embedding caches. Only plain values
cross the interface, so a backend can run in another process. Times are those of `time.monotonic`, which all
processes of a machine share.

`LocalBackend` runs in the same process. A transport to another process must
- make reservations unique, since each front numbers its own;
- withdraw a request whose caller is cancelled, and release whatever `admit` has granted it by then;
- withdraw the requests and release the reservations of a front that has gone away;
- pass on each `BatchReport` that names sampled reservations of a front, before the results of that batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.fair_queue import Flow
from alignserve_server.batching.request import Embedded
from alignserve_server.model.encoder import ModelInfo, PixelValues, TokenIds


class AdmissionRequest(NamedTuple):
    """A request for room for a call's items of one modality."""

    modality: str
    items: int
    size_bytes: int  # of all items, as the caller sent them
    flow: Flow  # the caller's name and the priority
    deadline: float | None = None  # monotonic seconds
    waits_for_room: bool = False  # if not, it is refused when there is no room
    is_sampled: bool = False  # whether its batches are reported


class PreparedItems(NamedTuple):
    """A call's inputs of one modality, as the model takes them, in columns of equal length."""

    payloads: Sequence[PixelValues] | Sequence[TokenIds]
    sizes: Sequence[int]  # bytes, as the caller sent them
    keys: Sequence[bytes]  # identify the contents; the keys of texts are their tokens

    @classmethod
    def of_texts(cls, texts: Sequence[TokenIds], sizes: Sequence[int]) -> PreparedItems:
        """Returns texts, whose tokens are their keys."""
        return cls(texts, sizes, texts)


class InferenceBackend(Protocol):
    """Embeds prepared inputs of all callers. Use only on the event loop's thread, except for `look_up`."""

    @property
    def info(self) -> ModelInfo:
        """The model being served."""
        ...

    async def admit(self, reservation: int, request: AdmissionRequest) -> None:
        """Takes room under a number that the caller chooses, until `release`. Takes none if cancelled.

        Raises:
            QueueFull: There is no room, or the caller already has its share.
            WouldMissDeadline: There is room, but the answer would come too late.
        """
        ...

    def look_up(self, modality: str, key: bytes) -> NDArray[np.float32] | None:
        """Returns the cached embedding of an image, so that the image need not be decoded.

        Call it on any thread except the event loop's: it may block while it asks another process.
        """
        ...

    async def embed(self, reservation: int, items: PreparedItems) -> Embedded:
        """Embeds the items of a reservation and ends it; serves texts from the cache where possible.

        If cancelled, removes items that still wait from the queue.

        Raises:
            ExpiredInQueue: The deadline passed while an item waited.
            InferenceFailed: The model failed on an item.
            ShuttingDown: The backend no longer accepts items.
        """
        ...

    def release(self, reservation: int, *, is_served: bool = True) -> None:
        """Frees what is left of a reservation, and withdraws its items; no effect if it has ended.

        Does not block.
        """
        ...

    async def check_not_crowded(self, flow: Flow) -> None:
        """Returns if texts of a flow that waits for room would soon get it.

        Raises:
            QueueFull: They would have to wait for other work first.
        """
        ...
