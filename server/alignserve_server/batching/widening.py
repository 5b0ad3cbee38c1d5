"""Tries larger batches while serving, since sizes measured at startup can be wrong.

The machine may have been busy at startup, or callers send other texts than those that were timed. So from
time to time, while enough entries wait, batches of the current size and of twice that size take turns under
the same load. If the larger size has the higher throughput, it becomes the current size. The size never
shrinks back, so it cannot oscillate.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from alignserve_server.batching.batch_size import LONGEST_SECONDS, WORTH

_TRIAL_PAIRS, _PAIRS_TO_WIN = 15, 11  # pairs of consecutive batches: a burst usually hits both or neither
_BATCHES_BEFORE_TRIAL = 30  # full batches
_BATCHES_AFTER_FAILURE = 2000  # full batches, so that the cost of trials is negligible


class Widening:
    """The batch size of one modality, and the trial of a larger one. Pure; time is passed in."""

    def __init__(self, size: int, limit: int) -> None:
        """Starts with batches of `size` entries, which may grow up to `limit`."""
        self.size = size
        self._limit = limit
        self._is_widers_turn = False
        self._rest(_BATCHES_BEFORE_TRIAL)

    def next_size(self, waiting: int) -> int:
        """Returns the maximum size of the next batch, given the number of waiting entries."""
        if self._batches_to_trial or self._wider == self.size or waiting < self._wider:
            return self.size
        self._is_widers_turn = not self._is_widers_turn
        return self._wider if self._is_widers_turn else self.size

    def learn(self, entries: int, work: int, seconds: float) -> bool:
        """Records how long a batch took; returns whether `size` has grown.

        Args:
            entries: Number of entries in the batch.
            work: Total length of the entries, in units of `Entry.length`.
            seconds: Duration of the batch.
        """
        rate = work / max(seconds, 1e-9)
        if self._batches_to_trial:
            if entries == self.size:
                self._come_nearer_to_trial(seconds)
        elif entries == self.size:
            self._rate = rate
        elif entries == self._wider and self._rate:
            self._wins.append(rate * WORTH > self._rate)
            self._rate = 0.0
        return len(self._wins) == _TRIAL_PAIRS and self._decide()

    def give_up(self) -> None:
        """Ends all trials because larger batches do not fit the device."""
        self._limit = self.size
        self._rest(_BATCHES_AFTER_FAILURE)

    @property
    def _wider(self) -> int:
        return max(self.size, min(2 * self.size, self._limit))

    def _come_nearer_to_trial(self, seconds: float) -> None:
        self._seconds.append(seconds)
        self._batches_to_trial -= 1
        if not self._batches_to_trial and median(self._seconds) * self._wider / self.size > LONGEST_SECONDS:
            self._rest(_BATCHES_AFTER_FAILURE)

    def _decide(self) -> bool:
        pays = sum(self._wins) >= _PAIRS_TO_WIN
        if pays:
            self.size = self._wider
        self._rest(_BATCHES_BEFORE_TRIAL if pays else _BATCHES_AFTER_FAILURE)
        return pays

    def _rest(self, batches: int) -> None:
        self._batches_to_trial = batches
        self._seconds: deque[float] = deque(maxlen=_TRIAL_PAIRS)  # of the latest full batches
        self._rate = 0.0  # of the latest trial batch of the current size; 0 once it is paired
        self._wins: list[bool] = []  # by pair, whether the larger size won
