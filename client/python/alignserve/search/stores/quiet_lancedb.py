"""LanceDB, without what its engine logs on stderr: "no existing dataset", whenever a store is created."""

from __future__ import annotations

import os

os.environ.setdefault("LANCEDB_LOG", "error")  # read once, when the engine is loaded

from lancedb import connect

__all__ = ["connect"]
