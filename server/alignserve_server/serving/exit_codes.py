"""Exit codes that an orchestrator, or the supervisor of workers, reacts to."""

from __future__ import annotations

EXIT_UNRECOVERABLE = 3  # only a new process can serve
