"""A real Envoy with the configuration shipped in `deploy/envoy`, on free local ports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

from tests.integration.serving import until
from tests.processes import BIN, ROOT

PROGRAM = BIN / "envoy"
CONFIG = ROOT / "deploy/envoy/envoy.yaml"


class Envoy:
    """A running Envoy, observed through its admin page."""

    def __init__(self, admin: str, replicas: Sequence[str], log: Path) -> None:
        self.port = 0
        self.log = log  # one JSON line per failed call
        self._admin = admin
        self._replicas = set(replicas)

    async def start(self) -> None:
        """Waits until Envoy listens."""
        await until(self._listeners)
        (listener,) = await self._listeners()
        self.port = listener["local_address"]["socket_address"]["port_value"]

    async def wait_for_healthy(self) -> None:
        """Waits until Envoy considers every replica healthy."""

        async def is_healthy() -> bool:
            return await self._healthy() == self._replicas

        await until(is_healthy)

    async def served(self, address: str) -> int:
        """Returns how many calls a replica has answered, across its restarts."""
        return int(self._stats(await self._host(address)).get("rq_success", 0))

    async def wait_for_served(self, address: str, count: int) -> None:
        """Waits until a replica has answered this many calls."""

        async def has_served() -> bool:
            return await self.served(address) >= count

        await until(has_served)

    async def count(self, name: str) -> int:
        """Returns a counter of the cluster, such as `upstream_rq_retry`."""
        page = await self._page(f"stats?format=json&filter=^cluster.alignserve.{name}$")
        return int(page["stats"][0]["value"])

    async def wait_for_count(self, name: str, count: int) -> None:
        """Waits until a counter of the cluster reaches this value."""

        async def has_counted() -> bool:
            return await self.count(name) >= count

        await until(has_counted)

    async def _listeners(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._page("listeners?format=json")).get("listener_statuses", [])
        return found

    async def _healthy(self) -> set[str]:
        return {_address(host) for host in await self._hosts() if _is_healthy(host["health_status"])}

    async def _host(self, address: str) -> dict[str, Any]:
        return next(host for host in await self._hosts() if _address(host) == address)

    async def _hosts(self) -> list[dict[str, Any]]:
        (cluster,) = (await self._page("clusters?format=json"))["cluster_statuses"]
        hosts: list[dict[str, Any]] = cluster.get("host_statuses", [])
        return hosts

    @staticmethod
    def _stats(host: dict[str, Any]) -> dict[str, str]:
        return {stat["name"]: stat.get("value", "0") for stat in host["stats"]}

    async def _page(self, path: str) -> dict[str, Any]:
        def fetch() -> dict[str, Any]:
            with urlopen(f"http://{self._admin}/{path}") as page:
                found: dict[str, Any] = json.load(page)
                return found

        return await asyncio.to_thread(fetch)


@asynccontextmanager
async def running_envoy(replicas: Sequence[str], folder: Path) -> AsyncIterator[Envoy]:
    """Runs Envoy in front of the addresses for the length of the block; its files go to the folder."""
    config, admin, log = folder / "envoy.json", folder / "admin", folder / "access.log"
    config.write_text(json.dumps(rendered(replicas)))
    with log.open("w") as stdout:
        process = await asyncio.create_subprocess_exec(
            *(str(PROGRAM), "-c", str(config), "--admin-address-path", str(admin)),
            *("--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"),
            stdout=stdout,
        )
    try:
        await until(lambda: process.returncode is not None or (admin.exists() and admin.read_text() != ""))
        envoy = Envoy(admin.read_text(), replicas, log)
        await envoy.start()
        yield envoy
    finally:
        if process.returncode is None:
            process.terminate()  # flushes the log
        await process.wait()


def rendered(replicas: Sequence[str]) -> dict[str, Any]:
    """Returns the shipped configuration; only addresses are changed."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    resources = config["static_resources"]
    config["admin"]["address"] = _socket("127.0.0.1:0")
    resources["listeners"][0]["address"] = _socket("127.0.0.1:0")
    resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": _socket(replica)}} for replica in replicas
    ]
    return config


def _socket(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _address(host: dict[str, Any]) -> str:
    socket = host["address"]["socket_address"]
    return f"{socket['address']}:{socket['port_value']}"


def _is_healthy(status: dict[str, Any]) -> bool:
    return status.get("eds_health_status") == "HEALTHY" and not status.get("failed_active_health_check")
