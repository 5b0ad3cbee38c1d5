"""What every step is given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.gpu.results import Results

_T = TypeVar("_T")


class CheckFailed(Exception):
    """A step has found something wrong; the tables say what."""


@dataclass(frozen=True, slots=True)
class Check:
    """A run as its steps see it.

    Attributes:
        results: Where its tables go.
        output: For files that are larger than a table.
        work: Kept between runs: the checkpoint.
        is_pretended: There is no GPU, and everything is small.
    """

    results: Results
    output: Path
    work: Path
    is_pretended: bool

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint, which the first step writes."""
        return self.work / ("tiny" if self.is_pretended else "align-base")

    def cuda(self) -> AbstractContextManager[None]:
        """Returns the context in which `device="cuda"` works."""
        if not self.is_pretended:
            return nullcontext()
        from tests.gpu.pretended_cuda import pretended_cuda  # with torch and the model, which few steps need

        return pretended_cuda()

    def sized(self, full: _T, small: _T) -> _T:
        """Returns what suits the device: all of it on a GPU, little without one."""
        return small if self.is_pretended else full
