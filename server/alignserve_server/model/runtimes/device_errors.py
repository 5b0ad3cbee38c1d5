"""Converts a runtime's errors to those of the `Encoder` protocol: no memory, and a lost device.

Most of them are plain RuntimeErrors with CUDA's own texts, which Triton and the CUDA driver's API share. A
`torch.AcceleratorError` also has CUDA's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from alignserve_server.model.encoder import DeviceLost, OutOfDeviceMemory

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_OUT_OF_MEMORY_TEXTS = re.compile(
    "out of memory"  # torch's allocator, CUDA, its driver and Triton; also pinned memory and graphs
    "|ALLOC(?:ATION)?_FAILED"  # cuBLAS, cuDNN
    "|CUBLAS_STATUS_NOT_INITIALIZED|CUDNN_STATUS_NOT_INITIALIZED"  # no memory for the library's handle
    "|NVML_SUCCESS == r INTERNAL ASSERT FAILED"  # torch's allocator, if it has no memory and no NVML
    "|can't allocate memory|not enough memory"  # torch on a CPU
)

# CUDA's errors after which every call of the process fails, and those of a device that is gone. The texts are
# what cudaGetErrorString returns.
_LOST = {
    214: "uncorrectable ECC error encountered",
    220: "uncorrectable NVLink error detected during the execution",
    226: "Invalid access of peer GPU memory over nvlink or a hardware error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    709: "context is destroyed",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "tensor memory not completely freed",
    810: "the MPS client has been terminated by the server",
    911: "an async error has occured in external entity outside of CUDA",
    999: "CUDA error: unknown error",  # such as that of a GPU that has fallen off the bus
}
_LOST_TEXTS = re.compile("|".join(map(re.escape, _LOST.values())))


@contextmanager
def device_errors() -> Iterator[None]:
    """Raises `OutOfDeviceMemory` or `DeviceLost` if the body runs out of memory or loses the device."""
    try:
        yield
    except MemoryError as error:
        raise OutOfDeviceMemory(str(error)) from error
    except RuntimeError as error:
        text, code = str(error), getattr(error, "error_code", None)
        if code in _LOST or _LOST_TEXTS.search(text):
            raise DeviceLost(text) from error
        if code == _OUT_OF_MEMORY or _OUT_OF_MEMORY_TEXTS.search(text):
            raise OutOfDeviceMemory(text) from error
        raise
