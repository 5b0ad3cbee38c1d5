"""A worker process, which the supervisor starts as `python -m alignserve_server.workers.worker`.

Standard input is a socket to the supervisor. The worker reads one line of JSON, the launch spec, unless the
spec is its argument, and writes lines of JSON: events of the server, and heartbeats of the event loop, which
show that it does not hang. When the supervisor ends, for whatever reason, the worker drains and exits.
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
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from alignserve_server.host.cores import pin_to_share
from alignserve_server.host.standard_error import keep_standard_error_from_blocking
from alignserve_server.serving.process import (
    Serving,
    end_process,
    exit_code,
    ignore_inherited_metrics,
    replace_process,
)
from alignserve_server.workers.roster import Role

if TYPE_CHECKING:
    from alignserve_server.access.shared_usage import SharedUsages
    from alignserve_server.settings import Settings


def main() -> NoReturn:
    """Serves according to the launch spec, and ends the process with the exit code."""
    ignore_inherited_metrics()
    supervisor = _take_standard_input()
    lines = supervisor.makefile("r")
    is_replacement = len(sys.argv) > 1  # of a process with the same cores
    spec = json.loads((sys.argv[1] if is_replacement else lines.readline()) or sys.exit(1))
    faulthandler.register(signal.SIGQUIT, file=spec["stacks_descriptor"])
    if not is_replacement:
        _pin(spec)
    threading.Thread(target=_drain_at_end, args=(lines,), daemon=True).start()
    code = exit_code(
        lambda: _serving(spec, Reports(supervisor)), lambda: _start_without_cuda_graphs(spec, supervisor)
    )
    end_process(code)


def _pin(spec: Mapping[str, Any]) -> None:
    """Gives this process its cores, before anything is imported that counts them or starts threads.

    The processes of a group have the same cores: what decoding leaves is for the lanes. Each front counts
    only its part of them, so that their decode threads add up to the number of cores.
    """
    parts = spec["settings"]["front_processes"] if spec["role"] == Role.FRONT.value else 1
    pin_to_share(spec["group"], spec["settings"]["workers"], parts=parts)


def _start_without_cuda_graphs(spec: Mapping[str, Any], supervisor: socket.socket) -> NoReturn:
    """Replaces this process; to the supervisor it stays the same one."""
    os.dup2(supervisor.fileno(), 0)
    spec = {**spec, "settings": {**spec["settings"], "cuda_graphs": False}}
    replace_process(["-m", "alignserve_server.workers.worker", json.dumps(spec)])


def _take_standard_input() -> socket.socket:
    """Returns the socket, and replaces standard input: child processes would keep the socket open."""
    supervisor = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as empty:  # noqa: PTH123 — a device
        os.dup2(empty.fileno(), 0)
    return supervisor


def _drain_at_end(lines: TextIO) -> None:
    with suppress(OSError):
        lines.read()
    os.kill(os.getpid(), signal.SIGTERM)


class Reports:
    """Messages to the supervisor, in order. Sending never waits for the supervisor to read."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._supervisor = supervisor
        self._unsent = b""

    def announce(self, event: str, **fields: object) -> None:
        """Sends an event; buffers what does not fit into the socket."""
        self._unsent += f"{json.dumps({'event': event, **fields})}\n".encode()
        self._send()

    def tell_state(self, state: str) -> None:
        """Sends the new state of the server."""
        self.announce("state", state=state)

    def beat(self) -> None:
        """Sends a heartbeat, unless earlier messages are still unread."""
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
        except OSError:  # the supervisor is gone, and the drain is about to start
            self._unsent = b""


async def _beating(serving: Serving, reports: Reports, seconds: float) -> int | None:
    """Serves while sending heartbeats. They come from the event loop, and stop if it is blocked."""

    async def beat() -> None:
        while seconds:
            reports.beat()
            await asyncio.sleep(seconds)

    beats = asyncio.ensure_future(beat())
    try:
        return await serving
    finally:
        beats.cancel()


def _serving(spec: Mapping[str, Any], reports: Reports) -> Serving:
    from alignserve_server.observability.logs import configure_logs
    from alignserve_server.settings import Settings

    settings = Settings(**spec["settings"])
    configure_logs(settings.log_level, settings.log_format, spec["worker"])
    keep_standard_error_from_blocking()
    serving = _SERVING[Role(spec["role"])](spec, settings, reports)
    return _beating(serving, reports, spec["beat_seconds"])


# Each imports only what its process needs.


def _whole(spec: Mapping[str, Any], settings: Settings, reports: Reports) -> Serving:
    from alignserve_server.serving.loading import load_encoder
    from alignserve_server.serving.server import serve

    load = partial(load_encoder, worker=spec["group"])
    return serve(
        settings,
        load,
        reports.announce,
        reports.tell_state,
        usages=_usages(spec),
        listens_first=spec["listens_first"],
    )


def _device(spec: Mapping[str, Any], settings: Settings, reports: Reports) -> Serving:
    from alignserve_server.serving.device_process import serve_device
    from alignserve_server.serving.loading import load_encoder

    load = partial(load_encoder, worker=spec["group"])
    return serve_device(settings, load, spec["socket"], reports.announce, reports.tell_state)


def _front(spec: Mapping[str, Any], settings: Settings, reports: Reports) -> Serving:
    from alignserve_server.serving.front_server import serve_front

    return serve_front(
        settings,
        spec["socket"],
        reports.announce,
        reports.tell_state,
        usages=_usages(spec),
        listens_first=spec["listens_first"],
    )


def _usages(spec: Mapping[str, Any]) -> SharedUsages:
    from alignserve_server.access.shared_usage import SharedUsages

    return SharedUsages(**spec["usages"])


_SERVING = {Role.WHOLE: _whole, Role.DEVICE: _device, Role.FRONT: _front}


if __name__ == "__main__":
    main()
