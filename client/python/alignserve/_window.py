"""How much of a list may be under way at once, by what the server answers."""

from __future__ import annotations

_WINDOWS_PER_REQUEST = 8  # so many windows of answers widen it by one request


class Window:
    """Halved by refusals, widened a little by answers, as TCP does: many jobs then share one server.

    It counts items and not requests, since a slow server is helped by smaller requests where even one is too
    much.

    Args:
        max_requests: Maximum number of requests under way.
        max_items: Maximum number of items in one request.
    """

    def __init__(self, max_requests: int, max_items: int) -> None:
        self._max_requests = max_requests
        self._max_items = max_items
        self._size = float(max_requests * max_items)
        self._requests = 0
        self._items = 0

    def room(self) -> int:
        """Returns how many items the next request may have; 0 while none may be sent."""
        items = max(1, min(self._max_items, int(self._size)))
        if self._requests == 0:
            return items
        fits = self._requests < self._max_requests and self._items + items <= self._size
        return items if fits else 0

    def send(self, items: int) -> None:
        """Enters a request."""
        self._requests += 1
        self._items += items

    def end(self, items: int) -> None:
        """Takes out a request that was answered or failed."""
        self._requests -= 1
        self._items -= items

    def widen(self, items: int) -> None:
        """Allows more after so many items were answered."""
        step = max(1.0, self._max_items / _WINDOWS_PER_REQUEST)
        self._size = min(self._size + step * items / self._size, self._max_requests * self._max_items)

    def narrow(self, *, at_least: int = 1) -> None:
        """Allows half of what is under way."""
        self._size = max(min(self._size, self._items) / 2, at_least)

    def limit_requests_to(self, max_items: int) -> None:
        """Sets another maximum number of items in one request."""
        self._max_items = max_items
        self._size = min(self._size, float(self._max_requests * max_items))
