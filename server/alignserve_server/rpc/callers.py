"""Who calls and how urgently, as far as fairness between callers is concerned."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import grpc

from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.errors import InvalidArgument
from alignserve_server.observability.caller_metrics import CERTIFICATE, KEY
from alignserve_server.rpc.access import current_key_name

PRIORITY_KEY = "alignserve-priority"
_DEFAULT = Priority.INTERACTIVE
_PRIORITIES = {priority.name.lower(): priority for priority in Priority}


def flow_of(context: grpc.aio.ServicerContext[Any, Any]) -> Flow:
    """Returns whose turn a call's items take: the caller's, at the priority that the call's metadata names.

    Raises:
        InvalidArgument: There is no such priority.
    """
    return Flow(caller_of(context), _priority_of(context))


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Names the caller: by its API key, or else by its certificate, or else by its host.

    All calls of a host are one caller's, whichever connections they come by.
    """
    name = current_key_name()
    if name is not None:
        return f"{KEY}{name}"
    for certified in context.auth_context().get("x509_common_name", ()):
        return f"{CERTIFICATE}{certified.decode(errors='replace')}"
    peer = unquote(context.peer())  # such as ipv4:127.0.0.1:41234, ipv6:[::1]:41234 or unix:
    host, separator, port = peer.rpartition(":")
    return host if separator and port.isdecimal() else peer


def priority_label(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Returns the priority of a call: one of `metrics.PRIORITIES`, whatever its metadata names."""
    for key, value in context.invocation_metadata() or ():
        if key == PRIORITY_KEY:
            return str(value) if value in _PRIORITIES else _DEFAULT.name.lower()
    return _DEFAULT.name.lower()


def _priority_of(context: grpc.aio.ServicerContext[Any, Any]) -> Priority:
    for key, value in context.invocation_metadata() or ():
        if key == PRIORITY_KEY:
            if value not in _PRIORITIES:
                raise InvalidArgument(
                    f"metadata {PRIORITY_KEY}: no such priority; send {' or '.join(_PRIORITIES)}"
                )
            return _PRIORITIES[value]
    return _DEFAULT
