"""alignserve whose model is slow, hangs or fails as told: python -m tests.deploy.faulty_server JSON

The JSON is {"settings": {…}, "load_seconds": 0, "batch_seconds": 0, "entry_seconds": 0}. Texts that callers
want embedded decide what happens: see `FAIL`, `HANG` and `HANG_FOR_A_WHILE`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from alignserve_server.model.encoder import Embeddings, TokenizedText
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.observability.logs import configure_logs
from alignserve_server.serving.server import serve
from alignserve_server.settings import Settings

FAIL = "fail"  # whatever is in a batch with it
HANG = "hang"  # for good, and the device with it
HANG_FOR_A_WHILE = "hang {}"  # so many tenths of a second
_LONGEST_WHILE = 300  # tenths
_FOR_GOOD_SECONDS = 1e6


class FaultyEncoder(FakeEncoder):
    """A fake that does what texts ask for."""

    def __init__(self, batch_seconds: float, entry_seconds: float) -> None:
        super().__init__(is_recording=False, seconds_per_batch=batch_seconds, seconds_per_entry=entry_seconds)
        self.failing = {self.key(FAIL)}
        self._whiles = {
            self._ids(HANG_FOR_A_WHILE.format(tenths)): tenths / 10 for tenths in range(1, _LONGEST_WHILE)
        }
        self._whiles[self._ids(HANG)] = _FOR_GOOD_SECONDS

    def encode_texts(self, batch: Sequence[TokenizedText]) -> Embeddings:
        for text in batch:
            time.sleep(self._whiles.get(tuple(text.input_ids), 0))
        return super().encode_texts(batch)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenize(text, truncate=False).input_ids)


def main() -> None:
    """Runs the server."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    settings = Settings(**{"log_format": "json", **told["settings"]})
    configure_logs(settings.log_level, settings.log_format)

    def load(_: Settings) -> FaultyEncoder:
        time.sleep(told.get("load_seconds", 0))
        return FaultyEncoder(told.get("batch_seconds", 0), told.get("entry_seconds", 0))

    code = asyncio.run(serve(settings, load))
    os._exit(code)  # a lane that hangs would keep the interpreter from ending


if __name__ == "__main__":
    main()
