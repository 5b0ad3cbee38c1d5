"""Errors of runtimes are told apart by what helps: smaller batches, a new process, or neither."""

from __future__ import annotations

import pytest
from alignserve_server.model.encoder import DeviceLost, OutOfDeviceMemory
from alignserve_server.model.runtimes.device_errors import device_errors

_HINT = "\nCUDA kernel errors might be asynchronously reported at some other API call"


class AcceleratorError(RuntimeError):
    """torch's own, which cannot be made with a number."""

    def __init__(self, text: str, error_code: int) -> None:
        super().__init__(text)
        self.error_code = error_code


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: out of memory" + _HINT),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        AcceleratorError("CUDA error: in other words", 2),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:1124"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
    ids=str,
)
def test_every_way_to_run_out_of_memory_is_one_error(error):
    """A smaller batch may fit, whichever library had no memory."""
    with pytest.raises(OutOfDeviceMemory), device_errors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered" + _HINT),
        RuntimeError("CUDA error: misaligned address"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: the launch timed out and was terminated"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: unknown error"),
        RuntimeError("CUDA driver error: an illegal instruction was encountered"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        AcceleratorError("CUDA error: in other words", 714),
    ],
    ids=str,
)
def test_an_error_that_outlives_its_call_means_a_lost_device(error):
    """Only a new process can use the device again."""
    with pytest.raises(DeviceLost), device_errors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: invalid argument"),
        RuntimeError("unknown error"),
        AcceleratorError("CUDA error: too many resources requested for launch", 701),
        ValueError("an illegal memory access was encountered"),
    ],
    ids=str,
)
def test_other_errors_stay_as_they_are(error):
    """An error of one batch says nothing about the next."""
    with pytest.raises(type(error)) as raised, device_errors():
        raise error
    assert raised.value is error
