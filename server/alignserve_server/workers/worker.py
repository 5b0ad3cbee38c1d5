"""One of several server processes, as the supervisor starts it: `python -m alignserve_server.workers.worker`.

Standard input is a socket to the supervisor. One line of JSON comes, the order; lines go back, each an event
of the server, and in between the event loop's beats, by which the supervisor sees that it does not hang. When
the supervisor is gone, however it went, the worker drains and ends.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TextIO

from alignserve_server.host.cores import take_share
from alignserve_server.host.standard_error import keep_standard_error_from_blocking
from alignserve_server.serving.process import Serving, end_process, exit_code, ignore_inherited_metrics


def main() -> NoReturn:
    """Serves as ordered, and ends the process with its exit code."""
    ignore_inherited_metrics()
    supervisor = _take_standard_input()
    lines = supervisor.makefile("r")
    order = json.loads(lines.readline() or sys.exit(1))
    faulthandler.register(signal.SIGQUIT, file=order["stacks_descriptor"])
    # Before anything is imported that counts the cores or starts threads.
    take_share(order["worker"], order["settings"]["workers"])
    threading.Thread(target=_drain_at_end, args=(lines,), daemon=True).start()
    end_process(exit_code(lambda: _serving(order, Reports(supervisor))))


def _take_standard_input() -> socket.socket:
    """Returns the socket, and leaves an empty input to children, who would keep the socket open."""
    supervisor = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as empty:  # noqa: PTH123 — a device
        os.dup2(empty.fileno(), 0)
    return supervisor


def _drain_at_end(lines: TextIO) -> None:
    with suppress(OSError):
        lines.read()
    os.kill(os.getpid(), signal.SIGTERM)


class Reports:
    """What the worker tells its supervisor, in order. Nothing waits for the supervisor to read it."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._supervisor = supervisor
        self._unsent = b""

    def announce(self, event: str, **fields: object) -> None:
        """Sends an event, or keeps it until there is room for it."""
        self._unsent += f"{json.dumps({'event': event, **fields})}\n".encode()
        self._send()

    def tell_state(self, state: str) -> None:
        """Sends the state that the server has entered."""
        self.announce("state", state=state)

    def beat(self) -> None:
        """Sends a sign of life, unless there are enough that the supervisor has not read."""
        if self._unsent:
            self._send()
        else:
            self.announce("beat")

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._supervisor.send(self._unsent, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            pass
        except OSError:  # it is gone, and the drain about to begin
            self._unsent = b""


async def _beating(serving: Serving, reports: Reports, seconds: float) -> int | None:
    """Serves, with a beat now and then. From the event loop: when that is blocked, there is none."""

    async def beat() -> None:
        while seconds:
            reports.beat()
            await asyncio.sleep(seconds)

    beats = asyncio.ensure_future(beat())
    try:
        return await serving
    finally:
        beats.cancel()


def _serving(order: Mapping[str, Any], reports: Reports) -> Serving:
    from alignserve_server.observability.logs import configure_logs
    from alignserve_server.serving.loading import load_encoder
    from alignserve_server.serving.server import serve
    from alignserve_server.settings import Settings

    settings = Settings(**order["settings"])
    configure_logs(settings.log_level, settings.log_format, order["worker"])
    keep_standard_error_from_blocking()
    load = partial(load_encoder, worker=order["worker"])
    serving = serve(
        settings, load, reports.announce, reports.tell_state, listens_first=order["listens_first"]
    )
    return _beating(serving, reports, order["beat_seconds"])


if __name__ == "__main__":
    main()
