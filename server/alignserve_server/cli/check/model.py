"""Loads the model as a start does, and passes on what the loader warns about."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from alignserve_server.cli.check.deployment import Deployment
from alignserve_server.serving.loading import load_encoder, run_once

_REPORTED = frozenset({"gpu_unused", "tokens_without_embedding"})  # by checks of their own
_ENVELOPE = frozenset({"event", "level", "timestamp"})  # the other fields say what happened


def load_model(deployment: Deployment) -> str:
    """Loads the model, compares it with the reference, and embeds an image and a text."""
    encoder = load_encoder(deployment.settings)
    run_once(encoder)
    deployment.encoder, info = encoder, encoder.info
    return (
        f"{info.model_id} on {info.runtime} in {info.dtype}, {info.device}; {info.embedding_dimension} "
        "dimensions; minimum cosine similarity to the reference "
        f"{info.min_cosine_similarity:.6f}; fingerprint {info.fingerprint}"
    )


@contextmanager
def collected_warnings() -> Iterator[Sequence[str]]:
    """Collects the warnings that the server's code logs, as text, instead of writing a log."""
    root, collector = logging.getLogger(), _Collector()
    handlers, root.handlers[:] = root.handlers[:], [collector]
    try:
        yield collector.warnings
    finally:
        root.handlers[:] = handlers


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        event = record.msg
        if isinstance(event, dict) and event.get("event") not in _REPORTED:  # others are of libraries
            fields = {name: value for name, value in event.items() if name not in _ENVELOPE}
            told = ", ".join(f"{name} {value}" for name, value in fields.items())
            self.warnings.append(f"{event.get('event')}: {told}")
