"""The answers to HTTP probes, on the metrics port and on the HTTP port."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus

Probe = Callable[[], tuple[HTTPStatus, str]]  # returns the status and a line of text


def probes(state: Callable[[], str]) -> Mapping[str, Probe]:
    """Returns the probes by their paths.

    Args:
        state: Returns the state of the server, one of `metrics.STATES`; only `serving` is ready.
    """

    def ready() -> tuple[HTTPStatus, str]:
        word = state()
        return HTTPStatus.OK if word == "serving" else HTTPStatus.SERVICE_UNAVAILABLE, word

    return {"/healthz": lambda: (HTTPStatus.OK, "ok"), "/readyz": ready}
