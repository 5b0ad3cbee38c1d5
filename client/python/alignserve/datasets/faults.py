"""What an error of a server means to a run: a row fails, it passes, or the run ends.

| error | of an item | of a stream or a call |
|---|---|---|
| InvalidArgumentError | the row fails | the run ends |
| InternalError | the item is sent again; after three attempts the row fails | the run ends |
| ResourceExhaustedError with a delay | the item is sent again after it | the items wait |
| UnavailableError | (ends the stream) | its items go to other servers, or wait |
| DeadlineExceededError | the item is sent again; after three attempts the run ends | the items wait |
| any other: no credentials, no permission, a proxy's limit | the run ends | the run ends |

The run also ends if no server answers for too long, if many rows in succession fail with InternalError, and
if a server comes back with another model.
"""

from __future__ import annotations

from enum import Enum, auto

from alignserve._retry import is_refusal
from alignserve.datasets.row import RowFailure
from alignserve.errors import (
    AlignserveError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)


class Verdict(Enum):
    """What follows from an error."""

    ROW_FAILS = auto()
    RETRY = auto()  # a few times, then it is the row's
    RETRY_OR_END = auto()  # a few times, then the run ends
    WAIT = auto()  # the server is full or away; bounded by the time without any answer
    RUN_ENDS = auto()


class RunError(Exception):
    """The run cannot go on; no row is to blame, and the run can be resumed.

    Attributes:
        error: The server's, which is also the cause.
    """

    def __init__(self, error: AlignserveError) -> None:
        super().__init__(str(error))
        self.error = error
        self.__cause__ = error


class ModelChangedError(ValueError):
    """A server has another model than the run began with."""


def verdict_on_item(error: AlignserveError) -> Verdict:
    """Returns what follows from the error of an item."""
    if isinstance(error, InvalidArgumentError):
        return Verdict.ROW_FAILS
    if isinstance(error, InternalError):
        return Verdict.RETRY
    if isinstance(error, DeadlineExceededError):
        return Verdict.RETRY_OR_END
    return verdict_on_stream(error)


def verdict_on_stream(error: AlignserveError) -> Verdict:
    """Returns what follows from the error of a stream, or of a call about the model."""
    if isinstance(error, (UnavailableError, DeadlineExceededError)) or is_refusal(error):
        return Verdict.WAIT
    return Verdict.RUN_ENDS


def failure_of(error: AlignserveError) -> RowFailure:
    """Returns the failure of a row to which an item's error belongs."""
    message = error.violations[0].description if error.violations else error.message
    return RowFailure(error.reason or error.code.name, message)
