"""Loads the model that the settings name, warms it up and decides its batch sizes."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping

from PIL import Image

from alignserve_server.batching.batch_size import Run, best_batch
from alignserve_server.batching.scheduler import BatchPolicy
from alignserve_server.errors import StartupError
from alignserve_server.host.cores import cpu_count
from alignserve_server.model.checkpoint import Checkpoint
from alignserve_server.model.encoder import TOKEN_BYTES, Encoder, PixelValues, TokenIds
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.prepared import resolve
from alignserve_server.serving.reading import input_limits
from alignserve_server.serving.tuned_sizes import TunedSizes, cpu_model
from alignserve_server.settings import Settings

LoadEncoder = Callable[[Settings], Encoder]

# Up to which batch sizes are measured, by modality. A GPU computes a batch in a tenth of the time, and leaves
# most of its cores idle with a few dozen texts.
_LIMITS_ON_A_CPU = {"image": 32, "text": 32}
_LIMITS_ON_A_GPU = {"image": 64, "text": 256}

# The fixed cost of a text forward, in tokens that cost as much, where it is not measured.
_OVERHEAD_ON_A_CPU, _OVERHEAD_ON_A_GPU = 16, 1024
# With less, texts would be grouped by equal length, and most batches would be almost empty.
_MIN_OVERHEAD, _MAX_OVERHEAD = 8, 1 << 20


def load_encoder(settings: Settings, worker: int = 0) -> Encoder:
    """Loads the model that the settings name; `fake` has no weights and is for tests of the server.

    With several workers, each uses a GPU of its own, unless `device` names one for all.

    Raises:
        CheckpointError: It is missing, incomplete or not an ALIGN checkpoint.
        StartupError: The device does not exist, or there are more workers than GPUs.
    """
    if settings.checkpoint == "fake":
        return FakeEncoder(embedding_dimension=640, is_recording=False)
    from alignserve_server.model.align import (
        LoadOptions,
        load_align,
    )  # so that the fake starts without any runtime

    checkpoint = resolve(settings.checkpoint, settings.revision)
    try:
        # A prepared checkpoint always runs on the CPU, even if there are other devices.
        is_prepared = not isinstance(checkpoint, Checkpoint)
        device = settings.device if is_prepared else worker_device(settings, worker)
        limits = batch_limits(settings, "cpu" if is_prepared else device)
        return load_align(
            checkpoint,
            LoadOptions(
                runtime=settings.runtime,
                device=device,
                dtype=settings.dtype,
                lanes=settings.lanes,
                threads_per_lane=settings.threads_per_lane,
                max_image_batch_size=limits["image"],
                max_text_batch_size=limits["text"],
                cuda_graphs=settings.cuda_graphs,
                cuda_kernels=settings.cuda_kernels,
                min_cosine_similarity=settings.min_cosine_similarity,
                cache_dir=settings.cache_dir,
                calibration_dir=settings.calibration_dir,
                inputs=input_limits(settings),
            ),
        )
    except ValueError as error:
        raise StartupError(str(error)) from error


class BatchSizes:
    """The maximum batch size of each modality, and the file that keeps the measured ones.

    Attributes:
        limits: The sizes up to which measured sizes may grow while serving, by modality.
        text_overhead: Fixed cost of a batch of texts, in tokens that cost as much.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        limits: Mapping[str, int],
        text_overhead: int,
        file: TunedSizes | None = None,
    ) -> None:
        self.limits = dict(limits)
        self.text_overhead = text_overhead
        self._sizes = dict(sizes)
        self._file = file

    def __getitem__(self, modality: str) -> int:
        return self._sizes[modality]

    def as_dict(self) -> dict[str, int]:
        """Returns the sizes by modality."""
        return dict(self._sizes)

    def keep(self) -> None:
        """Saves the measured sizes; sizes from settings are not saved."""
        if self._file is not None:
            sizes = {name: self._sizes[name] for name in self.limits}
            self._file.write(sizes, {"text": self.text_overhead} if "text" in self.limits else {})

    def widen(self, modality: str, size: int) -> None:
        """Takes a larger size that has proved faster while serving. Does not wait for the file."""
        self._sizes[modality] = size
        # a copy: others may follow
        kept = BatchSizes(self._sizes, self.limits, self.text_overhead, self._file)
        threading.Thread(target=kept.keep, daemon=True).start()

    def policies(self) -> dict[str, BatchPolicy]:
        """Returns how each modality is batched."""
        return {
            "image": BatchPolicy(self._sizes["image"], limit=self.limits.get("image", 0)),
            "text": BatchPolicy(self._sizes["text"], self.text_overhead, self.limits.get("text", 0)),
        }


def load_warm(settings: Settings, load: LoadEncoder, server_version: str) -> tuple[Encoder, BatchSizes]:
    """Returns the warmed-up model and its batch sizes. Runs in one thread, which it sets up like a lane's.

    Raises:
        Exception: Whatever loading raises.
    """
    encoder = load(settings)
    warm_up(encoder)
    sizes = _batch_sizes(settings, encoder, server_version)
    encoder.release_memory()
    return encoder, sizes


def warm_up(encoder: Encoder) -> None:
    """Runs the model before it serves, so that no caller waits for what libraries do on first use."""
    run_once(encoder)


def run_once(encoder: Encoder) -> None:
    """Runs the model once per modality, without the batcher: metrics count only the traffic of callers."""
    encoder.enter_lane()
    pixels, text = _plain_inputs(encoder)
    encoder.encode_images([pixels])
    encoder.encode_texts([text])


def batch_limits(settings: Settings, device: str) -> dict[str, int]:
    """Returns the maximum batch size of each modality, as set, or that of the device."""
    default = _LIMITS_ON_A_CPU if device == "cpu" else _LIMITS_ON_A_GPU
    return {
        "image": settings.max_image_batch_size or settings.max_batch_size or default["image"],
        "text": settings.max_text_batch_size or settings.max_batch_size or default["text"],
    }


def tuned_limits(settings: Settings, device: str) -> dict[str, int]:
    """Returns the maximum batch size of each modality whose size is measured at startup."""
    pins = {"image": settings.max_image_batch_size, "text": settings.max_text_batch_size}
    return {name: limit for name, limit in batch_limits(settings, device).items() if pins[name] is None}


def measured_sizes(
    settings: Settings,
    device: str,
    runs: Mapping[str, Run],
    text_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
    file: TunedSizes | None = None,
) -> BatchSizes:
    """Returns the maximum batch size of each modality: as set, or smaller if that is as fast.

    Args:
        settings: Define which sizes are used as given.
        device: On which the model runs.
        runs: Run a batch of a size, by modality; see `best_batch`.
        text_tokens: Length of the texts that are run.
        clock: Seconds.
        file: Has sizes that were measured before; what it lacks is measured.
    """
    limits = tuned_limits(settings, device)
    known = {} if file is None else file.read(limits)
    overheads = {} if file is None else file.read_overheads({"text": _MAX_OVERHEAD})
    if "text" in known and not overheads:
        del known["text"]
    measured = {
        modality: best_batch(runs[modality], limit, clock)
        for modality, limit in limits.items()
        if modality not in known
    }
    text_overhead = overheads.get("text", _OVERHEAD_ON_A_CPU if device == "cpu" else _OVERHEAD_ON_A_GPU)
    if "text" in measured:
        text_overhead = max(_MIN_OVERHEAD, round(measured["text"].overhead * text_tokens))
    sizes = {**known, **{modality: best.size for modality, best in measured.items()}}
    result = BatchSizes({**batch_limits(settings, device), **sizes}, limits, text_overhead, file)
    if measured:
        result.keep()
    return result


def _batch_sizes(settings: Settings, encoder: Encoder, server_version: str) -> BatchSizes:
    device = encoder.info.device
    limits = tuned_limits(settings, device)
    if not encoder.is_measurable or not limits:
        overhead = _OVERHEAD_ON_A_CPU if device == "cpu" else _OVERHEAD_ON_A_GPU
        return BatchSizes(batch_limits(settings, device), limits, overhead)
    pixels, text = _plain_inputs(encoder)

    def run_images(size: int) -> float | None:
        encoder.encode_images([pixels] * size)
        return encoder.device_seconds()

    def run_texts(size: int) -> float | None:
        encoder.encode_texts([text] * size)
        return encoder.device_seconds()

    return measured_sizes(
        settings,
        device,
        {"image": run_images, "text": run_texts},
        len(text) // TOKEN_BYTES,
        # On a CPU, time in which other processes ran does not count.
        time.process_time if device == "cpu" else time.perf_counter,
        _tuned_sizes(settings, encoder, server_version),
    )


def _tuned_sizes(settings: Settings, encoder: Encoder, server_version: str) -> TunedSizes:
    from alignserve_server.model.align import default_cache_dir  # so that the fake starts without it

    gpu = encoder.gpu
    facts: dict[str, str | int | None] = {
        "server": server_version,
        "processor": cpu_model(),
        "cores": cpu_count(),
        "gpu": gpu and gpu.uuid,
        "kernels": gpu and gpu.kernels,
        "graphs": gpu and bool(sum(gpu.graphs.values())),
        "runtime": encoder.info.runtime,
        "dtype": encoder.info.dtype,
        "device": encoder.info.device,
        "lanes": settings.lanes or encoder.lanes,
        "threads_per_lane": settings.threads_per_lane,
        "max_batch_size": settings.max_batch_size,
    }
    folder = (settings.cache_dir or default_cache_dir()) / "tuning"
    return TunedSizes(folder, encoder.info.fingerprint, facts)


def _plain_inputs(encoder: Encoder) -> tuple[PixelValues, TokenIds]:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "gray").save(buffer, "PNG")
    pixels = encoder.preprocess_image(buffer.getvalue())
    text = encoder.tokenize("a photo of a cat on a sofa in a room with a window", truncate=True)
    return pixels, text.token_ids


def worker_device(settings: Settings, worker: int) -> str:
    """Returns the device of a worker.

    Raises:
        ValueError: It does not exist or cannot be used.
        StartupError: There are fewer GPUs than workers.
    """
    from alignserve_server.model.align import resolved_device

    # With several workers each would keep some memory of the first GPU.
    device = resolved_device(settings.device, settings.runtime, is_tried=settings.workers == 1)
    if settings.workers == 1 or device == "cpu" or settings.device == device:
        return device
    try:
        resolved_device(f"cuda:{settings.workers - 1}", settings.runtime, is_tried=False)
    except ValueError as error:
        raise StartupError(
            f"{settings.workers} workers need a GPU each, but {error}; lower --workers, use --device cpu, or "
            f"let them share one with --device {device}"
        ) from error
    return f"cuda:{worker}"
