"""The record of a shard: which rows of the source it covers, and what became of each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from alignserve.datasets.row import RowFailure
from alignserve.datasets.source import Cursor


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row without a result, and why."""

    key: str
    reason: str
    message: str

    @classmethod
    def of(cls, key: str, failure: RowFailure) -> FailedRow:
        """Returns the failure of the row with this key."""
        return cls(key, failure.reason, failure.message)


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of a shard.

    Attributes:
        bytes: Its size.
        sha256: Digest of its content, in hexadecimal.
        rows: Number of its rows.
    """

    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The account of a shard; a shard without a record does not exist.

    Attributes:
        file: Number of the source file, from 0.
        shard: Number of the shard in that file, from 0.
        start: Position of its first row in the source file.
        end: Position behind its last row.
        is_last: Whether the source file was read to its end.
        rows_in: Rows read.
        rows_out: Rows with a result.
        failures: Rows without one.
        broken: Why the source file cannot be read beyond `end`, or `None`.
        outputs: The files of the shard by their names in the output folder; `OutputFolder.commit` sets them.
        details: Whatever else the job counts, as JSON.
    """

    file: int
    shard: int
    start: Cursor
    end: Cursor
    is_last: bool
    rows_in: int
    rows_out: int
    failures: tuple[FailedRow, ...] = ()
    broken: str | None = None
    outputs: Mapping[str, WrittenFile] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> Counter[str]:
        """Returns the number of failures by reason."""
        return Counter(failure.reason for failure in self.failures)

    @property
    def is_balanced(self) -> bool:
        """Returns whether every row that was read has a result or a failure, and not both."""
        return self.rows_in == self.rows_out + len(self.failures)

    def as_json(self) -> dict[str, Any]:
        """Returns the record as it is stored."""
        return {**asdict(self), "failed": self.failed}

    @classmethod
    def from_json(cls, text: str) -> ShardRecord:
        """Returns a stored record.

        Raises:
            ValueError: The text is not one.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            failed = fields.pop("failed")
            fields["failures"] = tuple(FailedRow(**failure) for failure in fields["failures"])
            fields["outputs"] = {name: WrittenFile(**file) for name, file in fields["outputs"].items()}
            record = cls(**fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a shard's record: {error}") from error
        if record.failed != failed or not record.is_balanced:
            raise ValueError("not a shard's record: its counts contradict each other")
        return record
