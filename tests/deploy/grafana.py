"""The dashboards of `deploy/grafana`, and servers under a load that gives every panel something to show."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from tests.deploy.prometheus import Prometheus, running_prometheus
from tests.load.soak import Soak
from tests.processes import ROOT, server_process

DASHBOARDS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
}

# refuses: its queue is nearly always full
_SMALL = ("--max-queue-size", "4", "--max-client-batch-size", "4")


@dataclass(frozen=True)
class Question:
    """A query of a panel."""

    dashboard: str
    panel: str
    expr: str
    legend: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}: {self.legend}"


def panels(dashboard: str) -> list[dict[str, Any]]:
    """Returns the panels of a dashboard, without the titles of rows."""
    return [panel for panel in DASHBOARDS[dashboard]["panels"] if panel["type"] != "row"]


def questions() -> list[Question]:
    """Returns the queries of all panels."""
    return [
        Question(name, panel["title"], target["expr"], target.get("legendFormat", ""))
        for name in DASHBOARDS
        for panel in panels(name)
        for target in panel["targets"]
    ]


def filled_in(expr: str, window: str = "10s") -> str:
    """Returns a query as Grafana sends it, for all servers and a window of rates."""
    values = {"$__rate_interval": window, "$job": "alignserve", "$instance": ".+"}
    for variable, value in values.items():
        expr = expr.replace(variable, value)
    return expr


@contextmanager
def loaded_servers(folder: Path, place: Path, flags: Sequence[str]) -> Iterator[Prometheus]:
    """Runs three servers that a Prometheus scrapes, and loads two of them for the length of the block.

    One is too small for its load, one has two workers, and one that nobody calls has a certificate.
    """
    certificate, key = place / "server.pem", place / "server.key"
    issued = trustme.CA().issue_cert("localhost")
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    tls = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    with ExitStack() as life:
        small, shared, idle = (
            life.enter_context(server_process(*flags, *own)) for own in (_SMALL, ("--workers", "2"), tls)
        )
        targets = {
            "align-0": small.metrics_port, "align-1": shared.metrics_port, "align-2": idle.metrics_port
        }  # fmt: skip
        prometheus = life.enter_context(running_prometheus(folder, targets, place))
        life.enter_context(_load(small.address, shared.address))
        yield prometheus


@contextmanager
def _load(*addresses: str) -> Iterator[None]:
    """Sends all kinds of calls, from a thread."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def send() -> None:
        await asyncio.gather(*(Soak(address).run(stop) for address in addresses))

    thread = threading.Thread(target=loop.run_until_complete, args=(send(),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
