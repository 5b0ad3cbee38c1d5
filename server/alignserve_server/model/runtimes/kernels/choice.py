"""Chooses the kernels of the image tower on a GPU: the fastest that compute the same as torch's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch

from alignserve_server.model.encoder import CaptureFailed, DeviceLost, OutOfDeviceMemory
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
        batch_sizes: Those that will be served the most, ascending.
        seconds_of: Measures the device time of a forward, as it will be served.
        cache_dir: For compiled kernels, and for the memory of failed trials. None: they have none.
    """

    dtype: torch.dtype
    pixels: torch.Tensor
    batch_sizes: Sequence[int]
    seconds_of: Callable[[Forward], float]
    cache_dir: Path | None = None

    @property
    def typical(self) -> torch.Tensor:
        """The batch whose time counts."""
        return self.pixels[:_TYPICAL_BATCH_SIZE]


@dataclass(frozen=True, slots=True)
class _Usable:
    forward: ImageForward
    seconds: float | None  # None if it has no rival


def sample_pixels(batch_size: int, image_size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Returns noise, the same in every process, with more contrast from image to image."""
    noise = torch.randint(
        0, 256, (*image_size, 3), dtype=torch.int32, generator=torch.Generator().manual_seed(0)
    ).to(device)
    pixels = torch.empty(batch_size, *image_size, 3, dtype=torch.uint8, device=device)
    for contrast, image in enumerate(pixels, 1):  # one by one: as int32 all would need four times the memory
        image.copy_(noise * contrast // batch_size)
    return pixels


@torch.inference_mode()
def choose_kernels(
    towers: Towers, setting: KernelsSetting, bench: Bench, makers: Makers = candidates.MAKERS
) -> KernelsName:
    """Chooses kernels, has the towers use them, and returns their name.

    `auto` is the fastest of those that compile in seconds. Others are used if they compute the same, and
    otherwise torch's are.

    Raises:
        CaptureFailed: A candidate has made captures impossible for this process.
        DeviceLost: A candidate has made the device unusable. `auto` leaves it out at the next start, as it
            does after a `CaptureFailed`.
    """
    begun = time.monotonic()
    bench, expected = _fitting(towers, bench)
    choice = _Choice(towers, setting, bench, expected)
    choice.try_all(makers)
    chosen = choice.fastest()
    if choice.unusable:
        _log.warning("cuda_kernels_unusable", **choice.unusable)
    _log.info(
        "cuda_kernels_chosen",
        kernels=chosen,
        images_per_second={
            name: round(len(bench.typical) / usable.seconds)
            for name, usable in choice.usable.items()
            if usable.seconds is not None
        },
        seconds=round(time.monotonic() - begun, 1),
    )
    return chosen


def _fitting(towers: Towers, bench: Bench) -> tuple[Bench, torch.Tensor]:
    """Returns the bench with batches that fit into memory, and what torch's kernels compute for the largest.

    Raises:
        OutOfDeviceMemory: Not even one image fits.
    """
    while True:
        try:
            with device_errors():
                return bench, towers.embed_pixels_plainly(bench.pixels)
        except OutOfDeviceMemory:
            if len(bench.pixels) == 1:
                raise
        half = len(bench.pixels) // 2
        sizes = [size for size in bench.batch_sizes if size <= half]
        bench = replace(bench, pixels=bench.pixels[:half], batch_sizes=sizes)


class _Choice:
    """The candidates that can be used so far, and why others cannot."""

    def __init__(self, towers: Towers, setting: KernelsSetting, bench: Bench, expected: torch.Tensor) -> None:
        self.usable: dict[KernelsName, _Usable] = {}
        self.unusable: dict[str, str] = {}
        self._towers, self._setting, self._bench, self._expected = towers, setting, bench, expected
        self._trials = Trials(bench.cache_dir if setting == "auto" else None, bench.pixels.device)

    def try_all(self, makers: Makers) -> None:
        """Tries one image and the largest batch, whose kernels differ most; `auto` measures a typical one."""
        for name in candidates.AUTOMATIC if self._setting == "auto" else (self._setting,):
            self._try(name, partial(self._first_trial, name, makers))
        if self._setting == "auto" and self.usable:
            self.usable = {"plain": self._measured(self._towers.embed_pixels_plainly), **self.usable}

    def fastest(self) -> KernelsName:
        """Has the towers use the fastest that are right for every batch size, and returns their name."""
        tried = 1, len(self._bench.pixels)
        others = [size for size in self._bench.batch_sizes if size not in tried]
        for name in sorted(self.usable, key=lambda name: self.usable[name].seconds or 0.0):
            if name == "plain":
                break
            forward = self.usable[name].forward
            if self._try(name, partial(self._check, forward, others)):
                self._towers.use_image_forward(forward)
                return name
        return "plain"

    def _try(self, name: KernelsName, trial: Callable[[], None]) -> bool:
        """Returns whether a trial succeeds; if not, notes why."""
        try:
            with self._trials.trying(name), device_errors():
                trial()
        except (CaptureFailed, DeviceLost):
            raise
        except Exception as error:  # noqa: BLE001 — compilers and drivers raise anything
            self.unusable[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return False
        return True

    def _first_trial(self, name: KernelsName, makers: Makers) -> None:
        candidates.keep_compiled(self._bench.cache_dir)
        forward = makers[name](self._towers)
        self._check(forward, (1, len(self._bench.pixels)))
        self.usable[name] = self._measured(forward)

    def _check(self, forward: ImageForward, sizes: Sequence[int]) -> None:
        """Raises Unavailable if a forward computes something else for one of the batch sizes."""
        limit = _MIN_COSINE_SIMILARITY[self._bench.dtype]
        for size in sizes:
            cosines = torch.cosine_similarity(forward(self._bench.pixels[:size]), self._expected[:size])
            lowest = float(cosines.min())
            if not lowest >= limit:
                raise Unavailable(
                    f"with {size} images, a cosine similarity to torch's kernels is {lowest:.6f}, "
                    f"below {limit}"
                )

    def _measured(self, forward: ImageForward) -> _Usable:
        if self._setting != "auto":
            return _Usable(forward, None)
        return _Usable(forward, self._bench.seconds_of(partial(forward, self._bench.typical)))
