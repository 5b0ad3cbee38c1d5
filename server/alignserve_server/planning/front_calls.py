"""Measures what a call costs the processes of a server with front processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from alignserve_server.errors import StartupError
from alignserve_server.host.processes import cpu_seconds
from alignserve_server.modality import MODALITIES
from alignserve_server.planning.curve import FrontCalls

Call = Callable[[int, str], Awaitable[int]]  # makes calls to a port with items of a modality; their number


async def front_call_seconds(call: Call) -> FrontCalls:
    """Returns the CPU time of a call in a front and in the device process, which serve the fake model.

    Raises:
        StartupError: They do not start.
    """
    front, device = {}, {}
    async with _server() as (port, processes):
        for modality in MODALITIES:
            before = [cpu_seconds(processes[name]) for name in ("front-0", "device")]
            calls = await call(port, modality)
            after = [cpu_seconds(processes[name]) for name in ("front-0", "device")]
            front[modality], device[modality] = (
                (end - start) / calls for start, end in zip(before, after, strict=True)
            )
    return FrontCalls(front, device)


@asynccontextmanager
async def _server() -> AsyncIterator[tuple[int, dict[str, int]]]:
    """Runs a device process and a front; yields the port and their process ids by name."""
    # Without the environment's settings, which may configure keys and certificates.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALIGNSERVE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "alignserve_server", "--checkpoint", "fake", "--front-processes", "1"),
        *("--listen", "127.0.0.1:0", "--metrics-listen", "none", "--log-format", "json"),
        *("--no-reflection", "--text-cache-bytes", "0", "--drain-delay-seconds", "0"),
        stderr=asyncio.subprocess.PIPE,
        env={**environment, "PYTHONSAFEPATH": "1"},  # or -m would import from the current directory first
    )
    try:
        yield await _started(process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def _started(process: asyncio.subprocess.Process) -> tuple[int, dict[str, int]]:
    assert process.stderr is not None  # noqa: S101 — for the type checker
    port, processes = 0, {}
    while line := await process.stderr.readline():
        if not line.startswith(b"{"):  # libraries warn in plain text
            continue
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "listening":
            port = event["port"]
        elif event["event"] == "worker_ready":
            processes[event["worker"]] = event["pid"]
        elif event["event"] == "ready":
            return port, processes
    raise StartupError("the overhead of calls could not be measured: no front process starts")
