"""The context that every step gets."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.gpu.results import Results

_T = TypeVar("_T")


class CheckFailed(Exception):
    """A step has found a fault; the tables say which."""


@dataclass(frozen=True, slots=True)
class Check:
    """A run of the check, as its steps see it.

    Attributes:
        results: Receives the step's tables.
        output: A folder for files larger than a table.
        work: A folder that is kept between runs, with the checkpoint.
        is_pretended: Whether CUDA is simulated, with small sizes.
    """

    results: Results
    output: Path
    work: Path
    is_pretended: bool

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint, which the first step writes."""
        return self.work / ("tiny" if self.is_pretended else "align-base")

    def cuda(self) -> AbstractContextManager[object]:
        """Returns the context in which `device="cuda"` works."""
        if not self.is_pretended:
            return nullcontext()
        from tests.pretended_cuda import pretended_cuda  # imports torch, which few steps need

        return pretended_cuda()

    def run_all(self, *parts: Callable[[], None]) -> None:
        """Runs all parts of a step, whatever the others raise, and records the faults of each at once.

        Raises:
            CheckFailed: Parts have failed.
        """
        faults: list[str] = []
        for part in parts:
            try:
                part()
            except Exception as error:  # noqa: BLE001 — of libraries and drivers; the next part may run
                if not isinstance(error, CheckFailed):
                    traceback.print_exc()
                faults.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
                self.results.proved("Faults", {"fault": faults[-1]})
        if faults:
            raise CheckFailed("; ".join(faults))

    def sized(self, full: _T, small: _T) -> _T:
        """Returns `full` on a GPU and `small` without one."""
        return small if self.is_pretended else full
