"""Chooses the kernels of the image tower on a GPU: the fastest that compute the same as torch's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch

from alignserve_server.model.encoder import DeviceLost
from alignserve_server.model.runtimes.device_errors import device_errors
from alignserve_server.model.runtimes.kernels import candidates
from alignserve_server.model.runtimes.kernels.candidates import Makers
from alignserve_server.model.runtimes.kernels.trials import Trials
from alignserve_server.model.runtimes.kernels.unavailable import Unavailable
from alignserve_server.model.runtimes.runtime import KernelsName, KernelsSetting
from alignserve_server.model.runtimes.towers import ImageForward, Towers
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

Forward: TypeAlias = Callable[[], torch.Tensor]

_TYPICAL_BATCH_SIZE = 32

# With vectors of torch's kernels in the same data type; a float32 reference is compared later.
_MIN_COSINE_SIMILARITY = {torch.float32: 0.99999, torch.float16: 0.9995, torch.bfloat16: 0.995}


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and with what candidates are tried.

    Attributes:
        dtype: Of the towers.
        pixels: The largest batch, on the device, (batch, height, width, 3).
        seconds_of: Measures the device time of a forward, as it will be served.
        cache_dir: For compiled kernels, and for the memory of failed trials. None: they have none.
    """

    dtype: torch.dtype
    pixels: torch.Tensor
    seconds_of: Callable[[Forward], float]
    cache_dir: Path | None = None

    @property
    def typical(self) -> torch.Tensor:
        """The batch whose time counts."""
        return self.pixels[:_TYPICAL_BATCH_SIZE]


@dataclass(frozen=True, slots=True)
class _Usable:
    forward: ImageForward
    seconds: float


def sample_pixels(batch_size: int, image_size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Returns noise, the same in every process, with more contrast from image to image."""
    noise = torch.randint(
        0, 256, (*image_size, 3), dtype=torch.int32, generator=torch.Generator().manual_seed(0)
    ).to(device)
    contrast = torch.arange(1, batch_size + 1, dtype=torch.int32, device=device).view(-1, 1, 1, 1)
    return (noise * contrast // batch_size).to(torch.uint8)


@torch.inference_mode()
def choose_kernels(
    towers: Towers, setting: KernelsSetting, bench: Bench, makers: Makers = candidates.MAKERS
) -> KernelsName:
    """Chooses kernels, has the towers use them, and returns their name.

    `auto` is the fastest of those that compile in seconds. Others are used if they compute the same, and
    otherwise torch's are.

    Raises:
        DeviceLost: A candidate has made the device unusable. `auto` leaves it out at the next start.
    """
    plain = _Usable(towers.embed_pixels_plainly, 0.0)
    tried, unusable = _try_all(towers, setting, bench, makers)
    if unusable:
        _log.warning("cuda_kernels_unusable", **unusable)
    if setting == "auto" and tried:
        seconds = bench.seconds_of(partial(plain.forward, bench.typical))
        tried = {"plain": _Usable(plain.forward, seconds), **tried}
    chosen: KernelsName = min(tried, key=lambda name: tried[name].seconds, default="plain")
    rates = {name: round(len(bench.typical) / usable.seconds) for name, usable in tried.items()}
    _log.info("cuda_kernels_chosen", kernels=chosen, images_per_second=rates)
    towers.use_image_forward(tried.get(chosen, plain).forward)
    return chosen


def _try_all(
    towers: Towers, setting: KernelsSetting, bench: Bench, makers: Makers
) -> tuple[dict[KernelsName, _Usable], dict[str, str]]:
    """Tries the candidates; returns the usable ones, and why others are not."""
    candidates.keep_compiled(bench.cache_dir)
    trials = Trials(bench.cache_dir if setting == "auto" else None, bench.pixels.device)
    expected = towers.embed_pixels_plainly(bench.pixels)
    usable: dict[KernelsName, _Usable] = {}
    unusable: dict[str, str] = {}
    for name in candidates.AUTOMATIC if setting == "auto" else (setting,):
        try:
            with trials.trying(name), device_errors():
                usable[name] = _tried(makers[name](towers), expected, bench)
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 — compilers and drivers raise anything
            unusable[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return usable, unusable


def _tried(forward: ImageForward, expected: torch.Tensor, bench: Bench) -> _Usable:
    """Raises Unavailable if a forward computes something else, for one image or for the largest batch."""
    limit = _MIN_COSINE_SIMILARITY[bench.dtype]
    for size in (1, len(bench.pixels)):  # their kernels differ
        cosines = torch.cosine_similarity(forward(bench.pixels[:size]), expected[:size])
        lowest = float(cosines.min())
        if not lowest >= limit:
            raise Unavailable(f"a cosine similarity to torch's kernels is {lowest:.6f}, below {limit}")
    return _Usable(forward, bench.seconds_of(partial(forward, bench.typical)))
