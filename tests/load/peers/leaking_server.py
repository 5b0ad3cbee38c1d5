"""alignserve with a deliberate leak, to check that the soak test finds it.

python -m tests.load.peers.leaking_server memory|fds|tasks [flags of alignserve-server]
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from alignserve_server.batching.engine import Engine
from alignserve_server.cli.main import main as run_server

_BYTES = 1000  # leaked by each call
_CALLS_PER_LEAK = 200  # for the other kinds

_kept: list[Any] = []
_calls = 0


def _leak(kind: str) -> None:
    global _calls
    _calls += 1
    if kind == "memory":
        _kept.append(os.urandom(_BYTES))
    elif _calls % _CALLS_PER_LEAK == 0 and kind == "fds":
        _kept.append(os.dup(2))
    elif _calls % _CALLS_PER_LEAK == 0:
        _kept.append(asyncio.create_task(asyncio.Event().wait()))


def main() -> None:
    """Runs the server."""
    kind = sys.argv.pop(1)
    embed_texts = Engine.embed_texts

    async def leaking(*arguments: Any, **options: Any) -> Any:
        _leak(kind)
        return await embed_texts(*arguments, **options)

    Engine.embed_texts = leaking  # type: ignore[method-assign]
    run_server()


if __name__ == "__main__":
    main()
