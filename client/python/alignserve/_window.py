"""How much of a list may be in flight, adapted to the server's answers."""

from __future__ import annotations

_WINDOWS_PER_REQUEST = 8  # windows of answers that widen it by one request


class Window:
    """Halved by refusals and widened a little by answers, like TCP's: many jobs can then share one server.

    It counts items, not requests: if even one request is too much for a slow server, smaller requests help.

    Args:
        max_requests: Maximum number of requests in flight.
        max_items: Maximum number of items in one request.
    """

    def __init__(self, max_requests: int, max_items: int) -> None:
        self._max_requests = max_requests
        self._max_items = max_items
        self._size = float(max_requests * max_items)
        self._requests = 0
        self._items = 0

    def room(self) -> int:
        """Returns how many items the next request may have; 0 if no request may be sent now."""
        items = max(1, min(self._max_items, int(self._size)))
        if self._requests == 0:
            return items
        fits = self._requests < self._max_requests and self._items + items <= self._size
        return items if fits else 0

    def send(self, items: int) -> None:
        """Adds a request that is sent."""
        self._requests += 1
        self._items += items

    def end(self, items: int) -> None:
        """Removes a request that was answered or failed."""
        self._requests -= 1
        self._items -= items

    def widen(self, items: int) -> None:
        """Allows more after this many items were answered."""
        step = max(1.0, self._max_items / _WINDOWS_PER_REQUEST)
        self._size = min(self._size + step * items / self._size, self._max_requests * self._max_items)

    def narrow(self, *, at_least: int = 1) -> None:
        """Allows half of the items now in flight."""
        self._size = max(min(self._size, self._items) / 2, at_least)

    def limit_requests_to(self, max_items: int) -> None:
        """Changes the maximum number of items in one request."""
        self._max_items = max_items
        self._size = min(self._size, float(self._max_requests * max_items))
