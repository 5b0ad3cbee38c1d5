"""The shape of errors at paths that belong to no dialect."""

from __future__ import annotations

from alignserve_server.http.answer import Answer
from alignserve_server.http.call import FIELD_PATHS
from alignserve_server.http.status import HttpError
from alignserve_server.http.timeouts import TIMEOUT_MS


class _Plain:
    """`{"error": {"code": …, "reason": …, "message": …}}`."""

    name = "http"
    prefixes: tuple[str, ...] = ()
    timeout_header = TIMEOUT_MS
    paths = FIELD_PATHS

    def error(self, error: HttpError) -> Answer:
        shown = {"code": error.code, "reason": error.reason, "message": error.message}
        return Answer.json({"error": shown}, error.status)


PLAIN = _Plain()
