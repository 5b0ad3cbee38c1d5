"""A series of measurements, with everything needed to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from alignserve import __version__
from alignserve._bench.recorder import Measurement
from alignserve._results import ModelInfo


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A series of measurements and their setup.

    Attributes:
        server: Address of the server.
        model: The model that it serves.
        settings: Options of the command.
        measurements: One for each load, in order.
        client_version: Version of this package.
        started_at: Start time, in UTC.
    """

    server: str
    model: ModelInfo
    settings: Mapping[str, Any]  # values of JSON
    measurements: list[Measurement] = field(default_factory=list)
    client_version: str = __version__
    started_at: datetime = field(default_factory=_now)

    @property
    def was_interrupted(self) -> bool:
        """Returns whether the last measurement ended early."""
        return any(one.was_interrupted for one in self.measurements)

    @property
    def has_failures(self) -> bool:
        """Returns whether any request failed."""
        return any(one.failed for one in self.measurements)
