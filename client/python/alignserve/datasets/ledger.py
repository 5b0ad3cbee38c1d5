"""The account of a run: rows in = rows out + failed, and whatever else keeps it from being a success."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignserve.datasets.records import ShardRecord


class UnbalancedError(Exception):
    """Rows were lost or counted twice; this is a bug, and the output cannot be trusted."""


@dataclass(slots=True)
class Ledger:
    """Counts of a run and the runs that it continues.

    Attributes:
        rows_in: Rows read.
        rows_out: Rows with a result.
        failed: Rows without one, by reason.
        skipped: Files of the source that are not rows, by suffix or kind.
        broken: Source files that break off, each with the reason and position; their rows before it count.
        problems: What could not be looked into.
        unfinished_files: Source files that were not read to their end, for whatever reason.
    """

    rows_in: int = 0
    rows_out: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    problems: Sequence[str] = ()
    unfinished_files: int = 0

    def add(self, record: ShardRecord) -> None:
        """Adds the counts of a shard."""
        self.rows_in += record.rows_in
        self.rows_out += record.rows_out
        self.failed.update(record.failed)

    def check(self) -> None:
        """Returns if the account is balanced.

        Raises:
            UnbalancedError: It is not.
        """
        if self.rows_in != self.rows_out + self.failed.total():
            raise UnbalancedError(
                f"{self.rows_in} rows in, but {self.rows_out} out and {self.failed.total()} failed; "
                "do not use this output, and report it as a bug"
            )

    @property
    def is_complete(self) -> bool:
        """Returns whether every source file was read to its end."""
        return not self.unfinished_files

    @property
    def is_success(self) -> bool:
        """Returns whether every row of the source has a result."""
        return self.is_complete and not (self.failed or self.broken or self.problems)

    def summary(self) -> str:
        """Returns the account in one line, for people."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.failed.most_common())
        line = f"{self.rows_in} rows in = {self.rows_out} out + {self.failed.total()} failed"
        line += f" ({reasons})" if reasons else ""
        if self.skipped:
            line += f"; {self.skipped.total()} files skipped"
        if self.broken:
            line += f"; {len(self.broken)} source files break off"
        if self.problems:
            line += f"; {len(self.problems)} problems"
        return line

    def as_json(self) -> dict[str, Any]:
        """Returns the account as the manifest has it."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "failed": dict(self.failed.most_common()),
            "skipped": dict(self.skipped.most_common()),
            "broken": list(self.broken),
            "problems": list(self.problems),
        }
