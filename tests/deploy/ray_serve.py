"""alignserve on a real, small, local Ray cluster: two replicas with the fake encoder.

python -m tests.deploy.ray_serve CONFIG FOLDER   # `serve run` with little memory
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import ROOT, free_port

CONFIG = ROOT / "deploy/ray/serve_config.yaml"
MANIFEST = CONFIG.with_name("kuberay.yaml")
REPLICAS = 2

_OBJECT_STORE_BYTES = 80 << 20  # about the minimum; the default is a third of the memory
_STOP_SECONDS = 60.0
_METRICS_LINE = re.compile(r'"port": (\d+), "event": "metrics"')


@dataclass(frozen=True)
class RayServe:
    """A running application, with the metrics ports of its replicas."""

    port: int
    metrics_ports: list[int]

    @property
    def address(self) -> str:
        """The proxy's address for clients."""
        return f"127.0.0.1:{self.port}"

    def samples(self, name: str, **labels: str) -> list[float]:
        """Returns one value of /metrics from each replica; 0 if it is missing."""
        return [_sample(port, name, labels) for port in self.metrics_ports]


@contextmanager
def running_ray_serve() -> Iterator[RayServe]:
    """Runs the shipped configuration, with the fake encoder and free ports, for the length of the block."""
    port = free_port()
    # Ray's socket paths would be too long in pytest's folders.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(_config(port)))
        command = [sys.executable, "-m", "tests.deploy.ray_serve", str(config), folder]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            try:
                metrics_ports = _wait_for_replicas(process.stdout)
                threading.Thread(target=deque, args=(process.stdout, 0), daemon=True).start()
                yield RayServe(port, metrics_ports)
            finally:
                _end(process)


def main(config: str, folder: str) -> None:
    """Runs `serve run` in a cluster of this process."""
    import ray
    from ray.serve.scripts import cli

    ray.init(
        address="local",
        num_cpus=REPLICAS,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler aborts
    cli(["run", config])


def _environment() -> dict[str, str]:
    """Returns the shipped manifest's variables, overridden by this process's own."""
    service = next(yaml.safe_load_all(MANIFEST.read_text()))
    (head,) = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    return {
        **{variable["name"]: variable["value"] for variable in head["env"]},
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # otherwise Ray writes one to the home folder
        "RAY_DEDUP_LOGS": "0",  # otherwise only one replica's log is shown
        **os.environ,
    }


def _config(port: int) -> dict[str, Any]:
    """Returns the shipped configuration; only ports, model and size are changed."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["grpc_options"]["port"] = port
    config["http_options"] = {"host": "127.0.0.1", "port": free_port()}
    application = config["applications"][0]
    # Without the cache, results do not depend on earlier tests.
    application["args"] |= {
        "checkpoint": "fake",
        "metrics_listen": f"127.0.0.1:{free_port()}",
        "text_cache_bytes": 0,
    }
    deployment = application["deployments"][0]
    deployment["ray_actor_options"]["num_cpus"] = 1
    deployment["autoscaling_config"] |= {"min_replicas": REPLICAS, "max_replicas": REPLICAS}
    return config


def _wait_for_replicas(log: IO[str]) -> list[int]:
    seen, ports = [], []
    for line in log:
        seen.append(line)
        if (match := _METRICS_LINE.search(line)) is not None:
            ports.append(int(match[1]))
        if len(ports) == REPLICAS:
            return ports
    raise AssertionError(f"Ray Serve ended before its replicas were ready:\n{''.join(seen)}")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    process.kill()  # if it still runs; its child processes end with it


def _sample(port: int, name: str, labels: dict[str, str]) -> float:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(
        sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
