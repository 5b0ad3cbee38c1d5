"""Loads the model as the server does, and records the time of each part and the captured graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import torch
from alignserve_server.model.align import AlignEncoder, LoadOptions, load_align
from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.model.runtimes import network, torch_cpu, torch_cuda
from alignserve_server.model.runtimes.static_forwards import Capture, Forward, StaticForwards
from structlog.testing import capture_logs

from tests.gpu.check import Check, CheckFailed
from tests.gpu.gpu import Gpu
from tests.gpu.results import Results

_PARTS = (
    (network, "load_network"),
    (torch_cpu, "make_reference"),
    (network, "optimized"),
    (torch_cuda, "Towers"),
)


@dataclass(frozen=True)
class Graph:
    """A captured forward.

    Attributes:
        shape: (batch size,) for images; (batch size, tokens) for texts.
        forward: Runs it without the graph, on the same memory.
        replay: Replays the graph.
        seconds: The duration of the capture.
    """

    shape: tuple[int, ...]
    forward: Forward
    replay: Forward
    seconds: float


@dataclass(frozen=True)
class Loaded:
    """The encoder, with records of its loading."""

    encoder: AlignEncoder
    graphs: Sequence[Graph]
    seconds: Mapping[str, float]  # by part; `load_align` is the total
    events: Sequence[Mapping[str, Any]]  # log events

    @property
    def images(self) -> list[Graph]:
        """The image graphs, smallest batch first."""
        return sorted((graph for graph in self.graphs if len(graph.shape) == 1), key=lambda one: one.shape)

    @property
    def texts(self) -> list[Graph]:
        """The text graphs, smallest batch and shortest text first."""
        return sorted((graph for graph in self.graphs if len(graph.shape) == 2), key=lambda one: one.shape)

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes that have graphs."""
        return [size for graph in self.images for size in graph.shape]

    def report(self, results: Results) -> None:
        """Adds tables of the loaded model and the time of each part.

        Raises:
            CheckFailed: No graph was captured, or the log has warnings.
        """
        info = self.encoder.info
        results.proved(
            "Loaded",
            {
                "dtype": info.dtype,
                "cosine with float32 on a CPU": f"{info.min_cosine_similarity:.6f}",
                "batch sizes": " ".join(map(str, self.batch_sizes)),
                "graphs": len(self.graphs),
                "log": " ".join(str(event["event"]) for event in self.events),
            },
        )
        captures = {
            "capture of images": sum(graph.seconds for graph in self.images),
            "capture of texts": sum(graph.seconds for graph in self.texts),
        }
        parts = {**self.seconds, **captures}
        rows = ({"part": part, "seconds": took} for part, took in parts.items())
        results.measured("Startup by part", *rows)
        memory = {"weights and graphs GB": self.encoder.device_memory_bytes / 1e9}
        results.measured("Memory", memory)
        if self.events or not self.graphs:
            raise CheckFailed(f"{len(self.graphs)} graphs; the log says {self.events}")


def load(check: Check, gpu: Gpu, *, max_batch_size: int) -> Loaded:
    """Loads the check's checkpoint onto the GPU, in the server's default data type for it."""
    seconds: dict[str, float] = {}
    graphs: list[Graph] = []
    with ExitStack() as stack:
        for owner, name in _PARTS:
            timed = partial(_timed, gpu, seconds, name, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, timed))
        capture = StaticForwards.capture

        def watched(forwards: StaticForwards, capture_one: Capture) -> None:
            capture(forwards, partial(_noted, gpu, graphs, capture_one))

        stack.enter_context(patch.object(StaticForwards, "capture", watched))
        events = stack.enter_context(capture_logs())
        checkpoint = resolve_checkpoint(str(check.checkpoint))
        options = LoadOptions(
            device="cuda",
            runtime="torch",
            max_image_batch_size=max_batch_size,
            max_text_batch_size=max_batch_size,
        )
        encoder = _timed(gpu, seconds, "load_align", load_align, checkpoint, options)
    return Loaded(encoder, graphs, seconds, events)


def _timed(gpu: Gpu, seconds: dict[str, float], name: str, call: Callable[..., Any], *given: Any) -> Any:
    begin = time.perf_counter()
    result = call(*given)
    gpu.synchronize()
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin
    return result


def _noted(gpu: Gpu, graphs: list[Graph], capture: Capture, forward: Forward) -> Forward:
    begin = time.perf_counter()
    replay = capture(forward)
    gpu.synchronize()
    graphs.append(Graph(_shape(forward), forward, replay, time.perf_counter() - begin))
    return replay


def _shape(forward: Forward) -> tuple[int, ...]:
    inputs: torch.Tensor = cast("partial[torch.Tensor]", forward).args[0]
    return tuple(inputs.shape[:1] if inputs.ndim == 4 else inputs.shape)  # pixels or tokens
