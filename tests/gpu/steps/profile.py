"""The kernels and operators that take the time of a forward without a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.profiler import profile

from tests.gpu.check import Check
from tests.gpu.gpu import Gpu, gpu_of
from tests.gpu.results import Row
from tests.gpu.towers import load_towers, random_pixels

_FILE = "profile.txt"
_RUNS = 3
_TOKENS = 16
_SHOWN_KERNELS, _SHOWN_OPERATORS, _SUMMARIZED = 40, 15, 8


@torch.inference_mode()
def run(check: Check) -> None:
    """Profiles images and texts; the full lists go to profile.txt."""
    gpu = gpu_of(check.is_pretended)
    towers = load_towers(check.checkpoint, gpu, torch.float16)
    ids = torch.randint(0, 100, (check.sized(32, 1), _TOKENS), device=gpu.device)
    forwards: dict[str, Callable[[], Any]] = {
        f"images x {size}": partial(towers.embed_pixels, random_pixels(gpu, size))
        for size in check.sized((32, 1), (1,))
    }
    forwards[f"texts x {len(ids)} x {_TOKENS}"] = partial(towers.embed_tokens, ids, torch.ones_like(ids))
    for name, forward in forwards.items():
        kernels, operators = _profiled(gpu, forward)
        lines = [f"== {name}: kernels", *_lines(kernels[:_SHOWN_KERNELS])]
        lines += [f"== {name}: operators", *_lines(operators[:_SHOWN_OPERATORS])]
        with (check.output / _FILE).open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        check.results.measured(f"Kernels: {name}", *_rows(kernels))


def _profiled(gpu: Gpu, forward: Callable[[], Any]) -> tuple[list[Any], list[Any]]:
    """Returns kernels and operators with self time, longest first."""
    for _ in range(_RUNS):
        forward()
    gpu.synchronize()
    with profile(activities=gpu.activities) as profiled:
        for _ in range(_RUNS):
            forward()
        gpu.synchronize()
    timed = sorted((one for one in profiled.key_averages() if _us(one) > 0), key=_us, reverse=True)
    kernels = [one for one in timed if one.device_type.name != "CPU"]
    return kernels, [one for one in timed if one.device_type.name == "CPU"]


def _rows(events: Sequence[Any]) -> list[Row]:
    total = sum(map(_us, events)) or float("nan")
    rows: list[Row] = [
        {"%": 100 * _us(one) / total, "µs": _us(one), "launches": one.count // _RUNS, "name": one.key[:70]}
        for one in events[:_SUMMARIZED]
    ]
    return [
        *rows,
        {"%": 100.0, "µs": total, "launches": sum(one.count for one in events) // _RUNS, "name": "all"},
    ]


def _lines(events: Sequence[Any]) -> list[str]:
    return [f"{_us(one):9.1f} us {one.count // _RUNS:5d} x  {one.key[:150]}" for one in events]


def _us(event: Any) -> float:
    """Returns the event's self time on the device, in microseconds per run."""
    return float(event.self_device_time_total) / _RUNS
