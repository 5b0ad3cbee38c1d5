"""What a lane keeps from batch to batch on a GPU: a stream for copies, and pinned memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from numpy.typing import NDArray

_DTYPES = {"uint8": torch.uint8, "int64": torch.int64}  # of pixels and tokens


class CudaLane:
    """Moves one lane's batches to the GPU and back.

    Copies overlap with the other lanes' forwards, since they are on a stream of their own, from and to pinned
    memory. Pinning and allocating take longer than copying, so both happen once.

    Attributes:
        copies: The stream of the copies to the GPU.
        device_seconds: The GPU's time for the latest batch; None if it failed.
    """

    def __init__(self, device: torch.device, input_bytes: int, output_bytes: int) -> None:
        """Prepares for batches of these sizes; larger ones replace the memory."""
        self.copies: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # in torch
        self.device_seconds: float | None = None
        self._staged = _Memory(input_bytes, pin_memory=True)
        self._inputs = _Memory(input_bytes, device=device)
        self._outputs = _Memory(output_bytes, pin_memory=True)

    def send(self, rows: Sequence[NDArray[Any]]) -> torch.Tensor:
        """Copies arrays of one shape to the GPU, on the stream for copies; returns them in one tensor.

        The tensor is valid until the next call.
        """
        shape, dtype = (len(rows), *rows[0].shape), _DTYPES[rows[0].dtype.name]
        with torch.cuda.stream(self.copies):
            staged, inputs = self._staged.tensor(shape, dtype), self._inputs.tensor(shape, dtype)
            pinned = staged.numpy()
            for place, row in enumerate(rows):  # by numpy: torch would copy with all its threads
                pinned[place] = row
            inputs.copy_(staged, non_blocking=True)
        return inputs

    def receive(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Copies embeddings to pinned memory, on the current stream; valid once that has happened."""
        output = self._outputs.tensor(tuple(embeddings.shape), embeddings.dtype)
        output.copy_(embeddings, non_blocking=True)
        return output

    @contextmanager
    def settled_before_reuse(self, compute: Any) -> Iterator[None]:
        """If a batch fails on the stream `compute`, waits there and for the copies: both use the memory."""
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):  # of a lost device
                self.copies.synchronize()
                compute.synchronize()
            raise


class _Memory:
    """Memory that is reused, and replaced when a larger block is needed."""

    def __init__(self, least_bytes: int, **options: Any) -> None:
        """Allocates nothing yet; the options are those of `torch.empty`."""
        self._least_bytes = least_bytes
        self._options = options
        self._block: torch.Tensor | None = None

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Returns the memory, uninitialized, as a tensor."""
        size = math.prod(shape) * dtype.itemsize
        if self._block is None or size > len(self._block):
            self._block = None  # frees it first
            self._block = torch.empty(max(size, self._least_bytes), dtype=torch.uint8, **self._options)
        return self._block[:size].view(dtype).view(shape)
