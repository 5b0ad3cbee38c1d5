"""Whether larger batches pay, found out while serving: sizes measured at startup can be wrong.

The machine may have been busy then, or callers send other texts than those that were timed. So from time to
time, while enough waits, batches of the current size and of twice as many take turns, under the same load;
and if the larger ones do more in the same time, they become the current size. It never goes back, so it
cannot oscillate.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from alignserve_server.batching.batch_size import LONGEST_SECONDS, WORTH

_TRIAL_PAIRS, _PAIRS_TO_WIN = 15, 11  # of neighbours, which a burst of other work mostly hits both or neither
_BATCHES_BEFORE_TRIAL = 30  # full ones
_BATCHES_AFTER_FAILURE = 2000  # full ones, so that trials cost nothing that counts


class Widening:
    """The largest batch of one modality, and the trial of a larger one. Pure; time is passed in."""

    def __init__(self, size: int, limit: int) -> None:
        """Starts with batches of `size` entries, which may become as large as `limit`."""
        self.size = size
        self._limit = limit
        self._is_widers_turn = False
        self._rest(_BATCHES_BEFORE_TRIAL)

    def next_size(self, waiting: int) -> int:
        """Returns how many entries the next batch takes at most, if so many wait for it."""
        if self._batches_to_trial or self._wider == self.size or waiting < self._wider:
            return self.size
        self._is_widers_turn = not self._is_widers_turn
        return self._wider if self._is_widers_turn else self.size

    def learn(self, entries: int, work: int, seconds: float) -> bool:
        """Notes how long a batch took; returns whether `size` has grown.

        Args:
            entries: Entries in the batch.
            work: What they amount to, in units of `Entry.length`.
            seconds: From the start to the end of the batch.
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
        """Ends all trials: larger batches do not fit the device."""
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
        self._rate = 0.0  # of the latest batch of the current size in a trial; 0 if it has its pair
        self._wins: list[bool] = []  # of the larger size in that trial, by pair
