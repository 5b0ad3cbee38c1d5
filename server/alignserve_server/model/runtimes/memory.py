"""Returns memory to the kernel that was needed only to load and measure a model."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

_MAPS = Path("/proc/self/maps")


def trim_heap() -> None:
    """Returns free heap blocks to the kernel, if the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def drop_file_pages(folder: Path) -> None:
    """Drops the cached pages of a folder's mapped files, on Linux; they are read again when needed."""
    if not _MAPS.exists():
        return
    madvise = ctypes.CDLL(None).madvise
    for line in _MAPS.read_text().splitlines():
        span, access, *_, path = line.split(maxsplit=5)
        if Path(path).parent == folder.resolve() and "w" not in access:
            start, end = (int(address, 16) for address in span.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
