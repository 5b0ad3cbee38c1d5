"""What is to be embedded, and the account of what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from alignserve.datasets.records import FailedRow
from alignserve.datasets.row import RowFailure

OnInput: TypeAlias = Callable[[bool], None]
"""Is told about each image that is done, and about everything that failed, which `True` says."""


@dataclass(frozen=True, slots=True)
class Input:
    """An image or a text.

    Attributes:
        key: Names it in messages.
        content: A text, the bytes of an image file, or the path of one.
        about: Whatever the caller wants back with its vector.
        label: What the data says of it; a part of the digest.
        truncate: Whether a text that is too long is truncated.
        failure: Why it cannot be used; it only counts.
    """

    key: str
    content: str | bytes | Path = ""
    about: Any = None  # of the caller's own type
    label: str = ""
    truncate: bool = False
    failure: RowFailure | None = None


@dataclass(slots=True)
class Account:
    """Counts inputs and names those that failed.

    Attributes:
        on_input: Called while it runs, to show how far it is.
        images: Number of images that were embedded.
        texts: Number of texts that were embedded.
        truncated: Number of texts that were truncated.
        failures: Of rows, images and texts.
        left_out: Number of rows that are not evaluated because of a failure of another, by reason.
    """

    on_input: OnInput = lambda _: None
    images: int = 0
    texts: int = 0
    truncated: int = 0
    failures: list[FailedRow] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def fail(self, key: str, failure: RowFailure) -> None:
        """Counts a failure."""
        self.failures.append(FailedRow.of(key, failure))
        self.on_input(True)

    def as_data(self) -> dict[str, Any]:
        """Returns the counts as JSON has them."""
        return {
            "images": self.images,
            "texts": self.texts,
            "truncated_texts": self.truncated,
            "failed": dict(Counter(failure.reason for failure in self.failures)),
            "left_out": dict(self.left_out),
        }
