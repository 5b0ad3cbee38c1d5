"""A lane: runs one batch at a time on its own thread, which survives any error from the model."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.observer import SplitReason
from alignserve_server.batching.queue import Entry
from alignserve_server.batching.request import Run
from alignserve_server.batching.scheduler import Batch
from alignserve_server.batching.shared_scheduler import SharedScheduler
from alignserve_server.errors import InferenceFailed, ServingError
from alignserve_server.model.encoder import DeviceLost, Encoder, OutOfDeviceMemory, has_direction
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)


class Outcome(NamedTuple):
    """What the model made of the entries of a batch."""

    embeddings: NDArray[np.float32]  # (entries, embedding_dimension); the rows of failed entries are void
    errors: dict[int, ServingError]  # by row

    def followed_by(self, other: Outcome) -> Outcome:
        """Returns the outcome of these entries and then others of the same batch."""
        rows = len(self.embeddings)
        return Outcome(
            np.concatenate([self.embeddings, other.embeddings]),
            self.errors | {rows + row: error for row, error in other.errors.items()},
        )


class LaneListener(Protocol):
    """Notified, on the lane's thread, of the lane's progress."""

    def batch_taken(self, batch: Batch) -> None:
        """A batch is about to run."""
        ...

    def batch_split(self, reason: SplitReason) -> None:
        """Entries have failed together and will run again in halves."""
        ...

    def batch_ended(
        self, batch: Batch, outcome: Outcome, run: Run, seconds: float, device_seconds: float
    ) -> None:
        """A batch has run; each of its entries has an embedding or an error.

        It took `seconds` in the lane, and `device_seconds` of these on the device.
        """
        ...

    def device_lost(self, error: DeviceLost) -> None:
        """The device has failed permanently, and the lane has ended. Its batch has no outcome."""
        ...

    def widened(self, modality: str, size: int) -> None:
        """The batch size of a modality has grown, since larger batches proved faster."""
        ...


class Lane:
    """Runs the scheduler's batches until the scheduler stops."""

    def __init__(
        self,
        number: int,
        encoder: Encoder,
        scheduler: SharedScheduler,
        listener: LaneListener,
        clock: Callable[[], float],
    ) -> None:
        """Prepares the thread; `start` runs it.

        Args:
            number: Number of the lane.
            encoder: The model. Its `encode_*` methods are called on the lane's thread.
            scheduler: Source of batches.
            listener: Notified of the lane's progress.
            clock: Monotonic seconds.
        """
        self._number = number
        self._runs = 0  # batches so far
        self._device_seconds = 0.0  # of the running batch
        self._encode: dict[str, Callable[[Sequence[Any]], NDArray[np.float32]]] = {
            "image": encoder.encode_images,
            "text": encoder.encode_texts,
        }
        self._dimension = encoder.info.embedding_dimension
        self._enter_lane = encoder.enter_lane
        self._measured_seconds = encoder.device_seconds
        self._scheduler = scheduler
        self._listener = listener
        self._clock = clock
        self._thread = threading.Thread(target=self._run, name=f"lane-{number}", daemon=True)
        self.is_dead = False  # whether an error has ended the thread

    @property
    def is_running(self) -> bool:
        """Whether the thread is still running."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def join(self, timeout_seconds: float) -> None:
        """Waits until the thread has ended, or the timeout has passed."""
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        try:
            self._enter_lane()
            while self._run_next():
                pass
        except DeviceLost as error:
            self._listener.device_lost(error)
        except BaseException as error:  # noqa: BLE001 — if a lane died unnoticed, its callers would wait
            _log.error("lane_died", lane=self._number, exc_info=error)
            self.is_dead = True

    def _run_next(self) -> bool:
        """Runs a batch; False ends the lane. Keeps nothing of the batch while it waits for the next."""
        batch = self._scheduler.take(self._number)
        if batch is None:
            return False
        self._runs += 1
        self._device_seconds = 0.0
        self._listener.batch_taken(batch)
        outcome = self._execute(batch, batch.entries)
        seconds = self._clock() - batch.start_time
        wider = self._scheduler.finish(self._number, batch, self._device_seconds)
        run = self._number, self._runs
        self._listener.batch_ended(batch, outcome, run, seconds, self._device_seconds)
        if wider is not None:
            self._listener.widened(batch.modality, wider)
        return True

    def _execute(self, batch: Batch, entries: list[Entry]) -> Outcome:
        """Runs entries of a batch; if that fails, runs each half, so that a bad entry fails by itself."""
        try:
            return self._forward(batch.modality, entries)
        except DeviceLost:
            raise  # smaller batches and other lanes would fail as well
        except Exception as error:  # noqa: BLE001 — a lane survives any error from the runtime
            reason = self._handle_failure(error, batch.modality, len(entries))
            if len(entries) == 1:
                embeddings = np.zeros((1, self._dimension), np.float32)
                return Outcome(embeddings, {0: _inference_failed(batch.modality, error)})
        # Not inside `except`: the error's traceback keeps the memory of the failed forward, which the halves
        # need.
        self._listener.batch_split(reason)
        middle = len(entries) // 2
        return self._execute(batch, entries[:middle]).followed_by(self._execute(batch, entries[middle:]))

    def _forward(self, modality: str, entries: list[Entry]) -> Outcome:
        embeddings = self._embed(modality, [entry.payload for entry in entries])
        if len(embeddings) != len(entries):
            raise RuntimeError(f"the encoder returned {len(embeddings)} rows for {len(entries)} entries")
        sound = has_direction(embeddings)
        if sound.all():
            return Outcome(embeddings, {})
        what = "the embedding is zero or has values that are not finite"
        unsound = np.flatnonzero(~sound).tolist()
        return Outcome(embeddings, {row: _inference_failed(modality, ValueError(what)) for row in unsound})

    def _embed(self, modality: str, payloads: list[Any]) -> NDArray[np.float32]:
        """Runs the model and counts its device time, or the duration of the call if it fails."""
        start, measured = self._clock(), None
        try:
            embeddings = self._encode[modality](payloads)
            measured = self._measured_seconds()
        finally:
            self._device_seconds += self._clock() - start if measured is None else measured
        return embeddings

    def _handle_failure(self, error: Exception, modality: str, batch_size: int) -> SplitReason:
        """Lowers the batch limit if memory ran out; returns the reason for the metrics."""
        if not isinstance(error, OutOfDeviceMemory):
            return "error"
        limit = self._scheduler.shrink(modality, batch_size)
        _log.warning("out_of_device_memory", modality=modality, batch_size=batch_size, new_limit=limit)
        return "out_of_memory"


def _inference_failed(modality: str, error: Exception) -> InferenceFailed:
    error_id = secrets.token_hex(8)
    _log.error("inference_failed", modality=modality, error_id=error_id, exc_info=error)
    return InferenceFailed(
        f"the model failed on this {modality}; report error id {error_id} to the operator",
        metadata={"error_id": error_id},
    )
