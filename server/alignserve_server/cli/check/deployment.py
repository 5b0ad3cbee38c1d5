"""A deployment while it is examined: its settings, its checkpoint once found, and the ports held open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeAlias

from alignserve_server.host.clock import ClockSteps
from alignserve_server.model.checkpoint import Checkpoint
from alignserve_server.model.encoder import Encoder
from alignserve_server.model.prepared import PreparedCheckpoint
from alignserve_server.settings import Settings


@dataclass
class Deployment:
    """A deployment while it is examined.

    Attributes:
        settings: Of the server.
        held: Resources that stay open until all checks are done, as in a server: two may use the same port.
        clock: Detects whether the system clock is set meanwhile.
        checkpoint: Set by the check of its files, if they can be served.
        encoder: Set by the check that loads the model.
    """

    settings: Settings
    held: ExitStack
    clock: ClockSteps = field(default_factory=ClockSteps)
    checkpoint: Checkpoint | PreparedCheckpoint | None = None
    encoder: Encoder | None = None

    @property
    def original(self) -> Checkpoint | None:
        """The checkpoint, if it is in Hugging Face format."""
        return self.checkpoint if isinstance(self.checkpoint, Checkpoint) else None


Check: TypeAlias = Callable[[Deployment], str]  # returns what it found; raises CheckWarning or any error
