"""Converts a `ServingError` to a status of HTTP, and headers about retries."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignserve_server.errors import FieldViolation, RequestTimeout, ServingError
from alignserve_server.http.answer import HeaderList
from alignserve_server.rpc.status import retry_delay_seconds, shown_message, shown_violations

_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error as a dialect shows it. Its message is safe to send and short."""

    error: ServingError
    status: int
    message: str
    retry_delay_seconds: float | None  # None if a retry is useless, now and later
    request_id: str
    media_type: str  # of the request's body, by which protocols that share a path are told apart

    @property
    def code(self) -> str:
        """The name of the gRPC code, such as `INVALID_ARGUMENT`."""
        return self.error.code

    @property
    def reason(self) -> str:
        """The stable reason, such as `TEXT_TOO_LONG`."""
        return self.error.reason

    @property
    def violations(self) -> list[FieldViolation]:
        """The invalid fields, by the caller's names."""
        return shown_violations(self.error)

    @property
    def headers(self) -> HeaderList:
        """The headers about retries and the like; those of every answer are added elsewhere."""
        is_final = not self.error.is_retryable or self.error.is_final_for_call
        headers = [("x-should-retry", "false" if is_final else "true")]
        if self.retry_delay_seconds is not None:
            milliseconds = math.ceil(self.retry_delay_seconds * 1000)
            headers.append(("retry-after", str(math.ceil(milliseconds / 1000))))
            headers.append(("retry-after-ms", str(milliseconds)))
        if self.status == 401:
            headers.append(("www-authenticate", "Bearer"))
        if allow := getattr(self.error, "allow", None):
            headers.append(("allow", allow))
        return tuple(headers)


def http_error(error: ServingError, request_id: str, media_type: str) -> HttpError:
    """Returns an error as HTTP sends it."""
    return HttpError(
        error, status_of(error), shown_message(error), retry_delay_seconds(error), request_id, media_type
    )


def status_of(error: ServingError) -> int:
    """Returns the HTTP status of an error."""
    if isinstance(error, RequestTimeout):
        return 408
    status: int = getattr(error, "http_status", _STATUSES[error.code])
    return status
