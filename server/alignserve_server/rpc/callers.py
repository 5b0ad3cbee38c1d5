"""Who calls, as far as fairness between callers is concerned."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import grpc


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Names the caller: one name for all calls of a host, whichever connections they come by."""
    peer = unquote(context.peer())  # such as ipv4:127.0.0.1:41234, ipv6:[::1]:41234 or unix:
    host, separator, port = peer.rpartition(":")
    return host if separator and port.isdecimal() else peer
