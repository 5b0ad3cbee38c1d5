"""Converts torch's various out-of-memory errors to one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from alignserve_server.model.encoder import OutOfDeviceMemory

# Messages of plain RuntimeErrors, from the CPU's allocator and for pinned memory.
_TEXTS = ("can't allocate memory", "not enough memory", "CUDA error: out of memory")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raises `OutOfDeviceMemory` if the body runs out of memory in any way."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfDeviceMemory(str(error)) from error
    except RuntimeError as error:
        if any(text in str(error) for text in _TEXTS):
            raise OutOfDeviceMemory(str(error)) from error
        raise
