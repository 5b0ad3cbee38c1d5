"""One of several server processes, as the supervisor starts it: `python -m alignserve_server.worker`.

Standard input is a socket to the supervisor. One line of JSON comes, the order; lines go back, each an event
of the server. When the supervisor is gone, however it went, the worker drains and ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TextIO

from alignserve_server.cli import Serving, end_process, exit_code
from alignserve_server.cores import take_share


def main() -> NoReturn:
    """Serves as ordered, and ends the process with its exit code."""
    supervisor = _take_standard_input()
    lines = supervisor.makefile("r")
    order = json.loads(lines.readline() or sys.exit(1))
    # Before anything is imported that counts the cores or starts threads.
    take_share(order["worker"], order["settings"]["workers"])
    threading.Thread(target=_drain_at_end, args=(lines,), daemon=True).start()
    end_process(exit_code(lambda: _serving(order, partial(_announce, supervisor))))


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


def _announce(supervisor: socket.socket, event: str, **fields: object) -> None:
    with suppress(OSError):  # it is gone, and the drain about to begin
        supervisor.sendall(f"{json.dumps({'event': event, **fields})}\n".encode())


def _serving(order: Mapping[str, Any], announce: Callable[..., object]) -> Serving:
    from alignserve_server.logs import configure_logs
    from alignserve_server.server import load_encoder, serve
    from alignserve_server.settings import Settings

    settings = Settings(**order["settings"])
    configure_logs(settings.log_level, settings.log_format, order["worker"])
    load = partial(load_encoder, worker=order["worker"])
    return serve(settings, load, announce, listens_first=order["listens_first"])


if __name__ == "__main__":
    main()
