"""torch runs out of memory in several ways; here they become one error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from alignserve_server.model.encoder import OutOfDeviceMemory

# in texts of a plain RuntimeError: of the CPU's allocator, and of pinned memory
_TEXTS = ("can't allocate memory", "not enough memory", "CUDA error: out of memory")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raises `OutOfDeviceMemory` for whatever lack of memory the body meets."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfDeviceMemory(str(error)) from error
    except RuntimeError as error:
        if any(text in str(error) for text in _TEXTS):
            raise OutOfDeviceMemory(str(error)) from error
        raise
