"""Measures each runtime and data type in a server: items per second, accuracy and memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from alignserve import Client
from alignserve._bench.load import ClosedLoop
from alignserve._bench.recorder import Measurement
from numpy.typing import NDArray
from PIL import Image

from tests.load.inputs import MODALITIES, TEXTS, grpc_calls
from tests.load.measuring import Memory, Plan, Rates, grpc_round, in_turn, progress
from tests.load.report import Section, number, table
from tests.processes import ServerProcess, server_process

_Choice = tuple[str, str]  # runtime, dtype

_CHOICES = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
)
_PHOTOS = Path(__file__).parents[1] / "data" / "photos"
_CALIBRATION_PHOTOS, _OTHER_PHOTOS = ("astronaut", "coffee"), ("cat", "rocket")
_CROPS = 16  # per photo
_COMPARED_TEXTS = 64
_CONCURRENCY = {"image": 32, "text": 128}


_NOTE = """\
Items per second when saturated; the servers take turns. Minimum cosine similarity: to transformers in float32
on the server's own patterns and texts, and to torch in float32 on two photos and 64 captions. Resident memory
in MB, when ready and after the load. int8 is calibrated with crops of two other photos."""
_HEAD = ("runtime", "dtype", "images/s", "texts/s", "own", "photos", "captions", "ready", "loaded")


def run(plan: Plan) -> Section:
    """Measures a server for each choice, one at a time."""
    choices = [choice for choice in _CHOICES if choice[1] != "int8" or find_spec("nncf")]
    with ExitStack() as stack:
        calibration = Path(stack.enter_context(TemporaryDirectory()))
        _write_crops(calibration)
        flags = (
            "--checkpoint",
            plan.checkpoint,
            "--min-cosine-similarity",
            "0",
            "--calibration-dir",
            str(calibration),
        )
        servers = {
            (runtime, dtype): stack.enter_context(
                server_process("--runtime", runtime, "--dtype", dtype, *flags)
            )
            for runtime, dtype in choices
        }
        ready = [Memory.of(server.process) for server in servers.values()]
        rates = [_rates(servers, modality, plan) for modality in MODALITIES]
        loaded = [Memory.of(server.process) for server in servers.values()]
        exactness = _exactness(list(servers.values()))
    rows = [
        (
            *choice,
            *(of[choice] for of in rates),
            *(f"{cosine:.4f}" for cosine in cosines),
            number(before.rss_mb),
            number(after.rss_mb),
        )
        for choice, cosines, before, after in zip(choices, exactness, ready, loaded, strict=True)
    ]
    return Section(f"Data types: {plan.model}", [_NOTE, table(_HEAD, rows)])


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


def _rates(servers: Mapping[_Choice, ServerProcess], modality: str, plan: Plan) -> dict[_Choice, Rates]:
    progress(f"{modality}s")

    def once(server: ServerProcess) -> Measurement:
        load = ClosedLoop(_CONCURRENCY[modality])
        return grpc_round(server.address, grpc_calls(modality), load, plan.run_length)

    measures = {choice: partial(once, server) for choice, server in servers.items()}
    return {choice: Rates.of(rounds) for choice, rounds in in_turn(measures, plan.rounds).items()}


def _exactness(servers: list[ServerProcess]) -> list[tuple[float, float, float]]:
    """Returns the minimum cosine similarities; for photos and captions, to the first server's."""
    clients = [Client(server.address) for server in servers]
    photos = [[client.embed_image(_PHOTOS / f"{name}.jpg") for name in _OTHER_PHOTOS] for client in clients]
    captions = [client.embed_text(TEXTS[:_COMPARED_TEXTS]) for client in clients]
    return [
        (client.model_info().min_cosine_similarity, _cosine(photos[0], images), _cosine(captions[0], texts))
        for client, images, texts in zip(clients, photos, captions, strict=True)
    ]


def _cosine(reference: object, embeddings: object) -> float:
    pair: list[NDArray[np.float32]] = [np.asarray(reference), np.asarray(embeddings)]
    return float((pair[0] * pair[1]).sum(axis=1).min())
