"""Loads the model that the settings name, warms it up and decides its batch sizes."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from PIL import Image

from alignserve_server.batching.batch_size import best_batch_size
from alignserve_server.batching.scheduler import BatchPolicy
from alignserve_server.errors import StartupError
from alignserve_server.host.cores import cpu_count
from alignserve_server.model.checkpoint import Checkpoint
from alignserve_server.model.encoder import Encoder, PixelValues, TokenIds
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.prepared import resolve
from alignserve_server.serving.reading import input_limits
from alignserve_server.serving.tuned_sizes import TunedSizes, cpu_model
from alignserve_server.settings import Settings

LoadEncoder = Callable[[Settings], Encoder]

_TEXT_BATCH_OVERHEAD_TOKENS = 16  # the fixed cost of a text forward, in tokens that cost as much


def load_encoder(settings: Settings, worker: int = 0) -> Encoder:
    """Loads the model that the settings name; `fake` has no weights and is for tests of the server.

    With several workers, each uses a GPU of its own.

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
        device = _device(settings, worker) if isinstance(checkpoint, Checkpoint) else settings.device
        return load_align(
            checkpoint,
            LoadOptions(
                runtime=settings.runtime,
                device=device,
                dtype=settings.dtype,
                lanes=settings.lanes,
                threads_per_lane=settings.threads_per_lane,
                max_batch_size=max(batch_limits(settings).values()),
                cuda_graphs=settings.cuda_graphs,
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
    """

    def __init__(
        self, sizes: Mapping[str, int], limits: Mapping[str, int], file: TunedSizes | None = None
    ) -> None:
        self.limits = dict(limits)
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
            self._file.write({name: self._sizes[name] for name in self.limits})

    def widen(self, modality: str, size: int) -> None:
        """Takes a larger size that has proved faster while serving. Does not wait for the file."""
        self._sizes[modality] = size
        kept = BatchSizes(self._sizes, self.limits, self._file)  # a copy: others may follow
        threading.Thread(target=kept.keep, daemon=True).start()

    def policies(self) -> dict[str, BatchPolicy]:
        """Returns how each modality is batched."""
        return batch_policies(self._sizes, self.limits)


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


def batch_limits(settings: Settings) -> dict[str, int]:
    """Returns the maximum batch size of each modality, as set."""
    return {
        "image": settings.max_image_batch_size or settings.max_batch_size,
        "text": settings.max_text_batch_size or settings.max_batch_size,
    }


def tuned_limits(settings: Settings) -> dict[str, int]:
    """Returns the maximum batch size of each modality whose size is measured at startup."""
    pins = {"image": settings.max_image_batch_size, "text": settings.max_text_batch_size}
    return {name: settings.max_batch_size for name, pin in pins.items() if pin is None}


def batch_sizes(
    settings: Settings,
    run_images: Callable[[int], object],
    run_texts: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
    known: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, int]:
    """Returns the maximum batch size of each modality: as set, or smaller if that is as fast.

    Args:
        settings: Define which sizes are used as given.
        run_images: Runs a batch of images of a size.
        run_texts: Runs a batch of texts of a size.
        clock: Seconds.
        known: Sizes that were measured before.
    """
    runs = {"image": run_images, "text": run_texts}
    measured = {
        modality: known.get(modality) or best_batch_size(runs[modality], limit, clock)
        for modality, limit in tuned_limits(settings).items()
    }
    return {**batch_limits(settings), **measured}


def batch_policies(
    sizes: Mapping[str, int], limits: Mapping[str, int] = MappingProxyType({})
) -> dict[str, BatchPolicy]:
    """Returns how each modality is batched; batches may grow from `sizes` to `limits` while serving."""
    return {
        "image": BatchPolicy(sizes["image"], limit=limits.get("image", 0)),
        "text": BatchPolicy(sizes["text"], _TEXT_BATCH_OVERHEAD_TOKENS, limits.get("text", 0)),
    }


def _batch_sizes(settings: Settings, encoder: Encoder, server_version: str) -> BatchSizes:
    limits = tuned_limits(settings)
    if not encoder.is_measurable or not limits:
        return BatchSizes(batch_limits(settings), limits)
    file = _tuned_sizes(settings, encoder, server_version)
    known = file.read(limits)
    pixels, text = _plain_inputs(encoder)
    sizes = batch_sizes(
        settings,
        lambda size: encoder.encode_images([pixels] * size),
        lambda size: encoder.encode_texts([text] * size),
        # On a CPU, time in which other processes ran does not count.
        time.process_time if encoder.info.device == "cpu" else time.perf_counter,
        known,
    )
    result = BatchSizes(sizes, limits, file)
    if known.keys() != limits.keys():
        result.keep()
    return result


def _tuned_sizes(settings: Settings, encoder: Encoder, server_version: str) -> TunedSizes:
    from alignserve_server.model.align import default_cache_dir  # so that the fake starts without it

    facts: dict[str, str | int | None] = {
        "server": server_version,
        "processor": cpu_model(),
        "cores": cpu_count(),
        "gpu": encoder.gpu_uuid,
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


def _device(settings: Settings, worker: int) -> str:
    from alignserve_server.model.align import resolved_device

    if settings.workers == 1 or resolved_device(settings.device, settings.runtime) == "cpu":
        return settings.device
    try:
        resolved_device(f"cuda:{settings.workers - 1}", settings.runtime)
    except ValueError as error:
        raise StartupError(
            f"{settings.workers} workers need a GPU each, but {error}; lower --workers or use --device cpu"
        ) from error
    return f"cuda:{worker}"
