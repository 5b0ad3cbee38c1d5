"""How much memory a server needs: always, and in the worst case that server/docs/limits.md describes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from alignserve_server.host.cores import cpu_count
from alignserve_server.model.checkpoint import Checkpoint
from alignserve_server.model.prepared import IMAGE_WEIGHTS, TEXT_WEIGHTS, PreparedCheckpoint
from alignserve_server.settings import Settings

_PROCESS_BYTES = 250 << 20  # Python, gRPC and a runtime
_FRONT_BYTES = (110 << 20) + (192 << 20)
_DECODER_BYTES = 35 << 20
_IMAGE_BYTES = 250_000  # resized
_QUEUE_COPIES = 7
_OTHER_MESSAGES = 16
_DECODING_COPIES = 3
_RGB = 3


@dataclass(frozen=True, slots=True)
class Demand:
    """Memory by purpose, in bytes, of all processes together.

    Attributes:
        model_bytes: Of one copy of the networks.
        always: What an idle server takes.
        worst_case: What callers can cause in addition.
    """

    model_bytes: int
    always: Mapping[str, int]
    worst_case: Mapping[str, int]

    @property
    def total(self) -> int:
        """Everything in the worst case."""
        return sum(self.always.values()) + sum(self.worst_case.values())


def memory_demand(settings: Settings, checkpoint: Checkpoint | PreparedCheckpoint | None) -> Demand:
    """Estimates the memory that a server needs; without a checkpoint, there is no model."""
    model, workers = _model_bytes(checkpoint), settings.workers
    fronts = settings.front_processes
    doors = workers * max(1, fronts)  # processes that take calls
    decode_threads = settings.decode_threads or max(1, cpu_count() // doors)
    messages = settings.max_uploads + settings.max_streams + _OTHER_MESSAGES
    return Demand(
        model,
        {
            **({"model": workers * model} if model else {}),
            "processes": workers * (_PROCESS_BYTES + fronts * _FRONT_BYTES),
            "caches": workers * (settings.text_cache_bytes + settings.image_cache_bytes),
        },
        {
            "queued calls": workers * _QUEUE_COPIES * settings.max_queue_bytes,
            "resized images": workers * settings.max_queue_size * _IMAGE_BYTES,
            "decoding": doors
            * (decode_threads * _DECODING_COPIES * _RGB * settings.max_image_pixels + _DECODER_BYTES),
            "requests being received": doors * messages * settings.max_request_bytes,
            "responses": doors * settings.max_unread_response_bytes,
        },
    )


def largest(sizes: Mapping[str, int]) -> str:
    """Returns the purpose that takes most, with its size."""
    name = max(sizes, key=lambda one: sizes[one])
    return f"{name} ({gibibytes(sizes[name])} GiB)"


def gibibytes(size: int) -> str:
    """Returns a size in bytes as GiB, without the unit."""
    return f"{size / (1 << 30):.3g}"


def _model_bytes(checkpoint: Checkpoint | PreparedCheckpoint | None) -> int:
    """Returns the size of the networks in float32."""
    if checkpoint is None:
        return 0
    if isinstance(checkpoint, Checkpoint):
        return sum(4 * math.prod(weight.shape) for weight in checkpoint.weights().values())
    files = (checkpoint.folder / name for name in (IMAGE_WEIGHTS, TEXT_WEIGHTS))
    return 2 * sum(path.stat().st_size for path in files)  # often stored in float16
