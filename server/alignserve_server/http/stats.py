"""The figures that the page at `/` shows live."""

from __future__ import annotations

import secrets
import time
from typing import Any

from alignserve_server.api import ANY_SCOPE, Accounting, CallScope, MethodRules, Service
from alignserve_server.http.answer import Answer
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.plain import PLAIN
from alignserve_server.http.request import HttpRequest
from alignserve_server.modality import MODALITIES
from alignserve_server.observability.metrics import LATENCY_BUCKETS

# A page that polls uses up no quota, and its calls would drown useful spans.
_RULES = MethodRules(scopes=ANY_SCOPE, is_metered=False, is_traced=False)


class Stats:
    """Serves totals since the start of this process, from its metrics.

    Rates are the caller's: the difference of two answers with the same `process`, divided by that of their
    `seconds`. So any number of pages can poll, and none of them costs the server any state.
    """

    def __init__(self, accounting: Accounting, service: Service) -> None:
        self._accounting = accounting
        self._service = service
        self._process = secrets.token_hex(8)
        self._start = time.monotonic()

    def endpoint(self) -> Endpoint:
        """Returns the endpoint, for which any valid key will do."""
        return Endpoint("/stats.json", ("GET",), PLAIN, "stats", _RULES, self._answer)

    async def _answer(self, _: HttpRequest, __: CallScope) -> Answer:
        return Answer.json(self.read(), headers=(("cache-control", "no-store"),))

    def read(self) -> dict[str, Any]:
        """Returns the figures; durations are in seconds."""
        metrics = self._accounting.metrics
        batches = {modality: metrics.batch_size.labels(modality).totals() for modality in MODALITIES}
        durations = [series.totals() for series in self._accounting.durations()]
        return {
            "process": self._process,
            "state": self._service.readiness.state.word,
            "seconds": round(time.monotonic() - self._start, 3),
            "items": {modality: int(metrics.items.labels(modality, "ok").value) for modality in MODALITIES},
            "queued": {
                modality: int(metrics.queue_entries.labels(modality).value or 0) for modality in MODALITIES
            },
            "batches": {modality: sum(counts) for modality, (counts, _) in batches.items()},
            "batched_items": {modality: int(entries) for modality, (_, entries) in batches.items()},
            "call_seconds": {
                "bounds": LATENCY_BUCKETS,  # upper ones; the last count is of all that took longer
                "counts": [sum(column) for column in zip(*(counts for counts, _ in durations), strict=True)],
                "sum": sum(seconds for _, seconds in durations),
            },
        }
