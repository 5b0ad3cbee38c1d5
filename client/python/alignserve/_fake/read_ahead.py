"""Reads a stream's messages ahead of their answers, as a real server does."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")


class ReadAhead(Generic[_T]):
    """Yields what an iterator yields, which a thread reads at most `size` ahead."""

    def __init__(self, source: Iterator[_T], size: int) -> None:
        self._source = source
        self._size = size
        self._read: deque[_T] = deque()
        self._is_over = False  # no more items are read
        self._changed = threading.Condition()  # guards the two fields above
        threading.Thread(target=self._read_all, name="alignserve-fake-stream", daemon=True).start()

    def __iter__(self) -> Iterator[_T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._read or self._is_over)
                if not self._read:
                    return
                item = self._read.popleft()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        """Ends the reading."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _read_all(self) -> None:
        try:
            for item in self._source:
                with self._changed:
                    self._read.append(item)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._read) < self._size or self._is_over)
                    if self._is_over:
                        return
        except Exception:  # noqa: BLE001 — gRPC raises one without a type when the client leaves
            return
        finally:
            self.close()
