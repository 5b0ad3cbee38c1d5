"""alignserve beside what people write or take today, with the same checkpoint, in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from alignserve import Client
from alignserve._bench.load import ClosedLoop
from alignserve._bench.runner import Extent
from alignserve_server.model.checkpoint import resolve_checkpoint

from tests.load.http_route import http_calls
from tests.load.inputs import grpc_calls
from tests.load.measuring import Rates, grpc_rates, http_rates, is_installed, memory_mb, wait_for_http
from tests.processes import free_port, python_server, server_process

_CALLERS = (1, 64)
_IMAGE_BATCH, _TEXT_BATCH = "8", "32"  # of the peers; images do best in small batches on a CPU
_PACKAGES = {"mosec": "mosec", "LitServe": "litserve"}
_READY_SECONDS = 120.0


@dataclass(frozen=True)
class _Standing:
    """What one server reaches with one modality."""

    one: Rates
    many: Rates
    memory_mb: float


def run(checkpoint: str, rounds: int, seconds: float) -> str:
    """Measures and returns a section of the results."""
    folder = str(resolve_checkpoint(checkpoint).folder)
    contenders: dict[str, Callable[[str, Extent, int], _Standing]] = {
        "alignserve": partial(_ours, ["--checkpoint", checkpoint]),
        "alignserve, torch": partial(_ours, ["--checkpoint", checkpoint, "--runtime", "torch"]),
        "plain grpc.aio": partial(_plain, folder),
        "mosec": partial(_mosec, folder),
        "LitServe": partial(_litserve, folder),
    }
    absent = [name for name, package in _PACKAGES.items() if not is_installed(package)]
    rows = []
    for modality in ("image", "text"):
        standings = {
            name: measure(modality, Extent(seconds, warmup_seconds=1.0), rounds)
            for name, measure in contenders.items()
            if name not in absent
        }
        ours = standings["alignserve"]
        rows += [_row(modality, name, standing, ours) for name, standing in standings.items()]
    skipped = f"Not installed, so not measured: {', '.join(absent)}; `make peers` installs them."
    return "\n".join(
        [
            f"## Beside others: {checkpoint.rstrip('/').rpartition('/')[2]}",
            "",
            "Calls of one item; medians. alignserve runs with no flag, and then on torch in float32 as the",
            "others do, with plain transformers. Texts have 3 to 40 words. Memory is that of all processes.",
            "",
            "| items | server | items/s at 64 | alignserve ÷ it | p50 ms at 1 | p99 ms at 64 | memory MiB |",
            "|---|---|---|---|---|---|---|",
            *rows,
            *(["", skipped] if absent else []),
        ]
    )


def _row(modality: str, name: str, standing: _Standing, ours: _Standing) -> str:
    many, one = standing.many, standing.one
    failed = f" ({many.failed + one.failed} failed)" if many.failed + one.failed else ""
    ratio = ours.many.items_per_second / many.items_per_second
    return (
        f"| {modality} | {name} | {many.items_per_second:.1f}{failed} | {ratio:.2f} "
        f"| {one.p50_ms:.1f} | {many.p99_ms:.0f} | {standing.memory_mb:.0f} |"
    )


def _ours(flags: list[str], modality: str, extent: Extent, rounds: int) -> _Standing:
    with server_process(*flags) as server:
        one, many = _grpc(server.address, modality, extent, rounds)
        return _Standing(one, many, memory_mb(server.process))


def _plain(folder: str, modality: str, extent: Extent, rounds: int) -> _Standing:
    port = free_port()
    with python_server("tests.load.peers.plain_server", folder, str(port)) as process:
        address = f"127.0.0.1:{port}"
        with Client(address, wait_for_ready=True, timeout_seconds=_READY_SECONDS) as client:
            client.embed_text("ready?")
        one, many = _grpc(address, modality, extent, rounds)
        return _Standing(one, many, memory_mb(process))


def _mosec(folder: str, modality: str, extent: Extent, rounds: int) -> _Standing:
    batch = _IMAGE_BATCH if modality == "image" else _TEXT_BATCH
    return _http("mosec_server", [batch], folder, modality, extent, rounds, as_json=False)


def _litserve(folder: str, modality: str, extent: Extent, rounds: int) -> _Standing:
    batch = _IMAGE_BATCH if modality == "image" else _TEXT_BATCH
    return _http("litserve_server", [batch, modality], folder, modality, extent, rounds, as_json=True)


def _http(
    module: str, options: list[str], folder: str, modality: str, extent: Extent, rounds: int, *, as_json: bool
) -> _Standing:
    port = free_port()
    with python_server(f"tests.load.peers.{module}", folder, str(port), *options) as process:
        calls = partial(http_calls, modality, as_json=as_json)
        wait_for_http(port, calls(), process)
        one, many = (http_rates(port, calls, callers, extent, rounds) for callers in _CALLERS)
        return _Standing(one, many, memory_mb(process))


def _grpc(address: str, modality: str, extent: Extent, rounds: int) -> tuple[Rates, Rates]:
    calls = partial(grpc_calls, modality)
    one, many = (grpc_rates(address, calls, ClosedLoop(callers), extent, rounds) for callers in _CALLERS)
    return one, many
