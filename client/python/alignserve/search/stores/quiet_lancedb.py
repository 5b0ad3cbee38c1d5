"""LanceDB without its engine's warnings on stderr, such as "no existing dataset" whenever a store is created.

Other modules import LanceDB from here only.
"""

from __future__ import annotations

import os

os.environ.setdefault("LANCEDB_LOG", "error")  # read once, when the engine is loaded

from lancedb import connect
from lancedb.index import BTree, IvfRq

__all__ = ["BTree", "IvfRq", "connect"]
