"""Checks that concurrent lanes never mix their batches, and measures their throughput and device time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from alignserve_server.model import probe
from alignserve_server.model.encoder import Embeddings
from numpy.typing import NDArray

from tests.gpu.check import Check, CheckFailed
from tests.gpu.loading import Loaded
from tests.gpu.rates import measured_sizes

_LANES = 2  # of one modality
_TOLERANCE = 1e-3  # relative to the largest element: other batch sizes round differently


def check_answers(check: Check, loaded: Loaded) -> None:
    """Runs batches of both modalities with known answers on all lanes, in random order, for some seconds.

    The device time of all batches must be at most the time that has passed, since overlaps count once.

    Raises:
        CheckFailed: A lane got vectors of another batch, or the device time is too long.
    """
    jobs = _jobs(loaded)
    expected = [job() for job in jobs]
    lanes = loaded.encoder.lanes
    counts, wrong, device_seconds = [0] * lanes, [0] * lanes, [0.0] * lanes

    def embed(lane: int, rng: np.random.Generator) -> None:
        which = int(rng.integers(len(jobs)))
        wrong[lane] += not _is_close(jobs[which](), expected[which])
        device_seconds[lane] += loaded.encoder.device_seconds() or 0.0
        counts[lane] += 1

    begin = time.perf_counter()
    _run_lanes(loaded, embed, check.sized(4.0, 0.3), lanes)
    busy = sum(device_seconds) / (time.perf_counter() - begin)
    check.results.proved(
        "Lanes with known answers", {"lanes": lanes, "batches": sum(counts), "wrong": sum(wrong)}
    )
    check.results.measured("Device time of all lanes", {"device seconds per second": busy})
    if sum(wrong) or not all(counts):
        raise CheckFailed(f"{sum(wrong)} of {sum(counts)} batches were wrong")
    if busy > 1.01:
        raise CheckFailed(f"the batches are charged {busy:.2f} s of device time per second")


def measure(check: Check, loaded: Loaded) -> None:
    """Measures two lanes of images from host to host, and the cores that they use."""
    sizes = [size for size in measured_sizes(loaded.batch_sizes) if size >= check.sized(8, 1)]
    seconds = check.sized(1.5, 0.1)
    for size in sizes:
        batch, counts = [_noise(loaded)] * size, [0] * _LANES

        def embed(
            lane: int, rng: object, batch: list[NDArray[np.uint8]] = batch, counts: list[int] = counts
        ) -> None:
            loaded.encoder.encode_images(batch)
            counts[lane] += len(batch)

        begin, cpu = time.perf_counter(), time.process_time()
        _run_lanes(loaded, embed, seconds)
        took = time.perf_counter() - begin
        check.results.measured(
            "Two lanes, host to host",
            {"batch": size, "images/s": sum(counts) / took, "cores": (time.process_time() - cpu) / took},
        )


def _jobs(loaded: Loaded) -> list[Callable[[], Embeddings]]:
    encoder, contents = loaded.encoder, probe.images()
    pixels = [encoder.preprocess_image(contents[name]) for name in probe.EMBEDDED_IMAGES]
    tokens = [encoder.tokenize(text, truncate=True).token_ids for text in probe.EMBEDDED_TEXTS]

    def images(count: int) -> Callable[[], Embeddings]:
        return lambda: encoder.encode_images(pixels[:count])

    def texts(skipped: int) -> Callable[[], Embeddings]:
        return lambda: encoder.encode_texts(tokens[skipped:])

    return [images(1), images(2), images(3), texts(0), texts(1), texts(2)]


def _run_lanes(
    loaded: Loaded, work: Callable[[int, np.random.Generator], None], seconds: float, lanes: int = _LANES
) -> None:
    errors: list[Exception] = []
    end = time.perf_counter() + seconds

    def lane(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            loaded.encoder.enter_lane()
            while time.perf_counter() < end:
                work(number, rng)
        except Exception as error:  # noqa: BLE001 — raised again by the waiting thread
            errors.append(error)

    threads: Sequence[threading.Thread] = [
        threading.Thread(target=lane, args=(number,)) for number in range(lanes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _noise(loaded: Loaded) -> NDArray[np.uint8]:
    shape = (*loaded.encoder.preprocess_image.output_size, 3)
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def _is_close(actual: Embeddings, expected: Embeddings) -> bool:
    return bool(np.allclose(actual, expected, rtol=0, atol=_TOLERANCE * float(np.abs(expected).max())))
