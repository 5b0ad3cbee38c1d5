"""alignserve with a model that is slow, hangs or fails on request: python -m tests.deploy.faulty_server JSON

The JSON is {"settings": {…}, "load_seconds": 0, "batch_seconds": 0, "entry_seconds": 0}. The texts
that callers send decide the fault: see `FAIL`, `HANG` and `HANG_FOR_A_WHILE`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from alignserve_server.model.encoder import Embeddings, TokenIds
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.observability.logs import configure_logs
from alignserve_server.serving.server import serve
from alignserve_server.settings import Settings

FAIL = "fail"  # fails its whole batch
HANG = "hang"  # hangs the device permanently
HANG_FOR_A_WHILE = "hang {}"  # hangs it for this many tenths of a second
_LONGEST_WHILE = 300  # tenths
_FOR_GOOD_SECONDS = 1e6


class FaultyEncoder(FakeEncoder):
    """A fake with the faults that texts request."""

    def __init__(self, batch_seconds: float, entry_seconds: float) -> None:
        super().__init__(is_recording=False, seconds_per_batch=batch_seconds, seconds_per_entry=entry_seconds)
        self.failing = {self.key(FAIL)}
        self._whiles = {
            self._ids(HANG_FOR_A_WHILE.format(tenths)): tenths / 10 for tenths in range(1, _LONGEST_WHILE)
        }
        self._whiles[self._ids(HANG)] = _FOR_GOOD_SECONDS

    def encode_texts(self, batch: Sequence[TokenIds]) -> Embeddings:
        for text in batch:
            time.sleep(self._whiles.get(text, 0))
        return super().encode_texts(batch)

    def _ids(self, text: str) -> TokenIds:
        return self.tokenize(text, truncate=False).token_ids


def main() -> None:
    """Runs the server."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    settings = Settings(**{"log_format": "json", **told["settings"]})
    configure_logs(settings.log_level, settings.log_format)

    def load(_: Settings) -> FaultyEncoder:
        time.sleep(told.get("load_seconds", 0))
        return FaultyEncoder(told.get("batch_seconds", 0), told.get("entry_seconds", 0))

    code = asyncio.run(serve(settings, load))
    os._exit(code)  # a hanging lane would keep the interpreter from exiting


if __name__ == "__main__":
    main()
