"""Exit codes with a meaning of their own."""

from __future__ import annotations

EXIT_UNRECOVERABLE = 3  # only a new process can serve
