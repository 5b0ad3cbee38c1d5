"""The headers by which callers say how long they will wait."""

from __future__ import annotations

import re

from alignserve_server.errors import InvalidArgument
from alignserve_server.http.refusals import shortened

TIMEOUT_MS = "alignserve-timeout-ms"  # of dialects that have no header of their own
CONNECT_TIMEOUT_MS = "connect-timeout-ms"
GRPC_TIMEOUT = "grpc-timeout"

_MILLISECONDS = re.compile(r"[0-9]{1,10}")  # as in the Connect protocol
_GRPC = re.compile(r"([0-9]{1,8})([HMSmun])")
_GRPC_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def timeout_seconds(header: str, value: str) -> float:
    """Returns the time in the value of one of these headers.

    Raises:
        InvalidArgument: It is malformed.
    """
    if header == GRPC_TIMEOUT:
        if (match := _GRPC.fullmatch(value)) is not None:
            return int(match[1]) * _GRPC_UNITS[match[2]]
        expected = "up to 8 digits and a unit, such as 500m"
    else:
        if _MILLISECONDS.fullmatch(value) is not None:
            return int(value) / 1000.0
        expected = "up to 10 digits, in milliseconds, such as 500"
    raise InvalidArgument(f"header {header}: {shortened(value)!r} is not a timeout; send {expected}")
