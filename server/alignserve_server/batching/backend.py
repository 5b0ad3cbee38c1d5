"""The cut between what prepares inputs and what embeds them.

A front prepares: it decodes images to uint8 pixels and texts to token ids. A backend owns what all fronts
share: admission, queues, scheduler, lanes and the caches of embeddings. Only plain values cross, so a backend
may be in another process. Times are those of `time.monotonic`, which the processes of a machine share.

`LocalBackend` is in the same process. A transport to another one has to
- make reservations unique: each front numbers its own;
- withdraw the request whose caller is cancelled, and release what `admit` has granted to it by then;
- when a front is gone, withdraw its requests and release its reservations;
- pass on each `BatchReport` that names sampled reservations of a front, before the results of that batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.fair_queue import Flow
from alignserve_server.batching.queue import Embedded
from alignserve_server.model.encoder import ModelInfo, PixelValues

TokenIds: TypeAlias = tuple[int, ...]


class AdmissionRequest(NamedTuple):
    """The room that one modality's items of a call ask for."""

    modality: str
    items: int
    size_bytes: int  # of all, as their caller sent them
    flow: Flow  # the caller's name and the priority
    deadline: float | None = None  # monotonic seconds
    waits_for_room: bool = False  # or is refused
    is_sampled: bool = False  # its batches are reported


class PreparedItem(NamedTuple):
    """One input as the model takes it."""

    payload: PixelValues | TokenIds
    size_bytes: int  # as its caller sent it
    image_key: bytes | None = None  # names an image's content; a text's are its tokens


class InferenceBackend(Protocol):
    """Embeds prepared inputs of all callers. Belongs to the event loop's thread, `look_up` excepted."""

    @property
    def info(self) -> ModelInfo:
        """What is being served."""
        ...

    async def admit(self, reservation: int, request: AdmissionRequest) -> None:
        """Takes room under a number that the caller chooses, until `release`. Cancelled, it takes none.

        Raises:
            QueueFull: There is none, or the caller has its share already.
            WouldMissDeadline: There is, but what is there already would take longer.
        """
        ...

    def look_up(self, modality: str, key: bytes) -> NDArray[np.float32] | None:
        """Returns the cached embedding of an image, which then need not be decoded.

        On any thread but the event loop's, since it may have to ask another process.
        """
        ...

    async def embed(self, reservation: int, items: Sequence[PreparedItem]) -> Sequence[Embedded]:
        """Embeds items of a reservation; texts that are in the cache come from there.

        Cancelled, it takes what still waits out of the queue.

        Raises:
            ExpiredInQueue: The deadline came while one waited.
            InferenceFailed: The model failed on one.
            ShuttingDown: Nothing is embedded any more.
        """
        ...

    def release(self, reservation: int, *, is_served: bool = True) -> None:
        """Frees what is left of a reservation; no effect if there is none. Waits for nothing."""
        ...

    async def check_not_crowded(self, flow: Flow) -> None:
        """Passes if texts of a flow that waits for room would have some soon.

        Raises:
            QueueFull: They would not.
        """
        ...
