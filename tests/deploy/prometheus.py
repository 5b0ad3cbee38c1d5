"""A real Prometheus with the configuration of `deploy/prometheus`, but a free port and shorter times."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.processes import ROOT, free_port, wait_until

CONFIG = ROOT / "deploy/prometheus/prometheus.yml"
SCRAPE_SECONDS = 1
PLACE = {"cluster": "test", "namespace": "align"}

Series: TypeAlias = dict[str, Any]  # from Prometheus's API: `metric`, and `value` or `values`

_ANSWER_SECONDS = 30
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def programs(folder: Path) -> Path | None:
    """Finds the folder with prometheus and promtool, or unpacks Debian's package; None if both fail."""
    if (found := shutil.which("prometheus")) is not None and shutil.which("promtool") is not None:
        return Path(found).parent
    try:
        subprocess.run(["apt-get", "download", "-q", "prometheus"], cwd=folder, check=True, timeout=120)
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", package, folder], check=True, timeout=120)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return folder / "usr/bin"


class Prometheus:
    """A running Prometheus, observed through its API."""

    def __init__(self, address: str, process: subprocess.Popen[bytes]) -> None:
        self.address = address
        self._process = process

    def wait_until_ready(self) -> None:
        """Waits until Prometheus answers queries."""
        wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, "Prometheus exited; see its log"
        try:
            with urlopen(f"http://{self.address}/-/ready", timeout=_ANSWER_SECONDS):
                return True
        except OSError:
            return False

    def query(self, expr: str) -> list[Series]:
        """Returns the current value of an expression."""
        found: list[Series] = self._ask("query", query=expr)["result"]
        return found

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """Returns the values of an expression over time, as for a graph."""
        found: list[Series] = self._ask("query_range", query=expr, start=start, end=end, step=step)["result"]
        return found

    def metric_names(self) -> set[str]:
        """Returns the names of all scraped and recorded metrics."""
        return set(self._ask("label/__name__/values"))

    def _ask(self, path: str, **parameters: str | float) -> Any:
        with urlopen(
            f"http://{self.address}/api/v1/{path}?{urlencode(parameters)}", timeout=_ANSWER_SECONDS
        ) as page:
            return json.load(page)["data"]


@contextmanager
def running_prometheus(
    folder: Path, targets: Mapping[str, Any], place: Path, *, speedup: int = 1
) -> Iterator[Prometheus]:
    """Runs the binary in `folder` with these targets; its files go to `place`.

    Args:
        folder: The folder with the Prometheus binary.
        targets: Service discovery, as in a scrape configuration; see `named_targets`.
        place: A folder for configuration and data.
        speedup: The factor by which the times in the rules are shortened.
    """
    config = place / "prometheus.yml"
    config.write_text(yaml.safe_dump(_hurried(targets, place, speedup)))
    address = f"127.0.0.1:{free_port()}"
    command = [
        *(str(folder / "prometheus"), f"--config.file={config}", f"--storage.tsdb.path={place / 'data'}"),
        *(f"--web.listen-address={address}", "--log.level=error"),
        f"--query.lookback-delta={max(300 // speedup, 3 * SCRAPE_SECONDS)}s",
    ]
    with subprocess.Popen(command) as process:
        try:
            prometheus = Prometheus(address, process)
            prometheus.wait_until_ready()
            yield prometheus
        finally:
            process.terminate()


def named_targets(ports: Mapping[str, int]) -> dict[str, Any]:
    """Returns local ports as named targets, so that pictures show names instead of ports."""
    return {
        "static_configs": [
            {"targets": [f"127.0.0.1:{port}"], "labels": {**PLACE, "instance": name}}
            for name, port in ports.items()
        ]
    }


def hurried_rules(rules: str, speedup: int) -> str:
    """Returns a rules file with all ranges, `for` and offsets shortened, in milliseconds."""

    def shorten(match: re.Match[str]) -> str:
        milliseconds = 1000 * int(match[2]) * _SECONDS[match[3]] // speedup
        return f"{match[1]}{milliseconds}ms{match[4]}"

    return re.sub(r"(\[|for: |offset )(\d+)([smhd])(\]?)", shorten, rules)


def _hurried(targets: Mapping[str, Any], place: Path, speedup: int) -> dict[str, Any]:
    """Returns the shipped configuration with other targets and shorter times."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["global"] = dict.fromkeys(config["global"], f"{SCRAPE_SECONDS}s")
    for number, file in enumerate(config["rule_files"]):
        hurried = place / file
        hurried.write_text(hurried_rules((CONFIG.parent / file).read_text(), speedup))
        config["rule_files"][number] = str(hurried)
    job = config["scrape_configs"][0]
    config["scrape_configs"] = [{"job_name": job["job_name"], **targets}]
    return config
