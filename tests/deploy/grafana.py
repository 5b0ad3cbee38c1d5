"""The dashboards of `deploy/grafana`, and servers under a load that gives every panel data."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import trustme

from tests.deploy.prometheus import Prometheus, named_targets, running_prometheus
from tests.load.soak import Soak
from tests.processes import ROOT, server_process

DASHBOARDS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
}

Flags: TypeAlias = Sequence[str]

_CERTIFICATE_LIFE = timedelta(days=60)


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
    """Returns the panels of a dashboard, without row titles."""
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
    """Returns a query as Grafana sends it, for all servers, with this window for rates."""
    values = {
        "$__rate_interval": window,
        "$cluster": ".*",
        "$namespace": ".*",
        "$job": "alignserve",
        "$instance": ".+",
    }
    for variable, value in values.items():
        expr = expr.replace(variable, value)
    return expr


@contextmanager
def loaded_servers(
    folder: Path,
    place: Path,
    called: Mapping[str, Flags],
    idle: Mapping[str, Flags],
    wave_seconds: float,
    pause_seconds: float = 0.0,
) -> Iterator[Prometheus]:
    """Runs servers that a Prometheus scrapes, and sends calls to some, for the length of the block.

    Args:
        folder: The folder with the Prometheus binary.
        place: A folder for Prometheus's files.
        called: Flags of the servers that get calls, by name.
        idle: Flags of the servers that get none, by name.
        wave_seconds: How long all callers use one server before they move to the next.
        pause_seconds: How long they wait in between.
    """
    with ExitStack() as life:
        servers = {
            name: life.enter_context(server_process(*flags)) for name, flags in {**called, **idle}.items()
        }
        targets = {name: server.metrics_port for name, server in servers.items()}
        prometheus = life.enter_context(running_prometheus(folder, named_targets(targets), place))
        life.enter_context(_waves([servers[name].address for name in called], wave_seconds, pause_seconds))
        yield prometheus


def tls_flags(place: Path) -> Flags:
    """Makes a certificate, and returns the flags of a server that uses it."""
    certificate, key = place / "server.pem", place / "server.key"
    ends = datetime.now(UTC) + _CERTIFICATE_LIFE
    issued = trustme.CA().issue_cert("localhost", not_after=ends)
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    return ("--tls-certificate", str(certificate), "--tls-key", str(key))


@contextmanager
def _waves(addresses: Sequence[str], wave_seconds: float, pause_seconds: float) -> Iterator[None]:
    """Sends calls of all kinds to the servers in turn, from a thread."""
    is_over = threading.Event()

    async def send() -> None:
        for address in itertools.takewhile(lambda _: not is_over.is_set(), itertools.cycle(addresses)):
            ebb = asyncio.Event()
            asyncio.get_running_loop().call_later(wave_seconds, ebb.set)
            await Soak(address).run(ebb)
            await asyncio.sleep(pause_seconds)

    thread = threading.Thread(target=asyncio.run, args=(send(),))
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
