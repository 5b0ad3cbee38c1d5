"""What each runtime and data type gives and takes: items per second, exactness and memory, served."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from functools import partial
from itertools import starmap
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from alignserve import Client
from alignserve._bench.load import ClosedLoop
from alignserve._bench.runner import Extent
from numpy.typing import NDArray
from PIL import Image

from tests.load.inputs import TEXTS, grpc_calls
from tests.load.measuring import grpc_rates, is_installed
from tests.processes import ServerProcess, server_process

_CHOICES = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
)
_PHOTOS = Path(__file__).parents[1] / "data" / "photos"
_CALIBRATION_PHOTOS, _OTHER_PHOTOS = ("astronaut", "coffee"), ("cat", "rocket")
_CROPS = 16  # of a photo
_COMPARED_TEXTS = 64
_CONCURRENCY = {"image": 32, "text": 128}


def run(checkpoint: str, rounds: int, seconds: float) -> str:
    """Measures and returns a section of the results; of the servers one works at a time."""
    choices = [choice for choice in _CHOICES if choice[1] != "int8" or is_installed("nncf")]
    with ExitStack() as stack:
        calibration = Path(stack.enter_context(TemporaryDirectory()))
        _write_crops(calibration)
        flags = ("--checkpoint", checkpoint, "--min-cosine", "0", "--calibration-folder", str(calibration))
        servers = [
            stack.enter_context(server_process("--runtime", runtime, "--dtype", dtype, *flags))
            for runtime, dtype in choices
        ]
        ready_mb = _resident_mb(servers)
        rates = [_rates(servers, modality, rounds, seconds) for modality in ("image", "text")]
        loaded_mb = _resident_mb(servers)
        exactness = _exactness(servers)
    figures = zip(choices, *rates, exactness, ready_mb, loaded_mb, strict=True)
    return "\n".join(
        [
            f"## Data types: {checkpoint.rstrip('/').rpartition('/')[2]}",
            "",
            "Items per second when saturated. Least cosines: with transformers in float32 on the server's",
            "own patterns and texts, and with torch in float32 on two photos and 64 captions. Resident",
            "memory in MB, when ready and after the load. int8 is calibrated with crops of two other photos.",
            "",
            "| runtime | dtype | images/s | texts/s | own | photos | captions | ready | loaded |",
            "|---|---|---|---|---|---|---|---|---|",
            *starmap(_row, figures),
        ]
    )


def _write_crops(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name in _CALIBRATION_PHOTOS:
        with Image.open(_PHOTOS / f"{name}.jpg") as photo:
            for number in range(_CROPS):
                share = random.uniform(0.3, 1)
                width, height = int(photo.width * share), int(photo.height * share)
                left = int(random.integers(photo.width - width + 1))
                top = int(random.integers(photo.height - height + 1))
                photo.crop((left, top, left + width, top + height)).save(folder / f"{name}-{number}.png")


def _row(
    choice: tuple[str, str],
    images: float,
    texts: float,
    cosines: tuple[float, ...],
    ready_mb: float,
    loaded_mb: float,
) -> str:
    exactness = " | ".join(f"{cosine:.4f}" for cosine in cosines)
    rates = f"{images:.0f} | {texts:.0f}"
    return f"| {' | '.join(choice)} | {rates} | {exactness} | {ready_mb:.0f} | {loaded_mb:.0f} |"


def _rates(servers: list[ServerProcess], modality: str, rounds: int, seconds: float) -> list[float]:
    """Returns the median rate of each server, measured in turn."""
    calls, load = partial(grpc_calls, modality), ClosedLoop(_CONCURRENCY[modality])
    extent = Extent(seconds, warmup_seconds=1.0)
    measured = [
        [grpc_rates(server.address, calls, load, extent, rounds=1).items_per_second for server in servers]
        for _ in range(rounds)
    ]
    return [statistics.median(rates) for rates in zip(*measured, strict=True)]


def _resident_mb(servers: list[ServerProcess]) -> list[float]:
    return [psutil.Process(server.process.pid).memory_info().rss / 2**20 for server in servers]


def _exactness(servers: list[ServerProcess]) -> list[tuple[float, float, float]]:
    """Returns least cosines; of photos and captions, with the first server's."""
    clients = [Client(server.address) for server in servers]
    photos = [[client.embed_image(_PHOTOS / f"{name}.jpg") for name in _OTHER_PHOTOS] for client in clients]
    captions = [client.embed_text(TEXTS[:_COMPARED_TEXTS]) for client in clients]
    return [
        (client.model_info().min_cosine, _cosine(photos[0], images), _cosine(captions[0], texts))
        for client, images, texts in zip(clients, photos, captions, strict=True)
    ]


def _cosine(reference: object, embeddings: object) -> float:
    pair: list[NDArray[np.float32]] = [np.asarray(reference), np.asarray(embeddings)]
    return float((pair[0] * pair[1]).sum(axis=1).min())
