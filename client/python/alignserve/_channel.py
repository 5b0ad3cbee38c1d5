"""How a channel to the server is set up, for both clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from alignserve._targets import Target
from alignserve.v1 import align_service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["AlignService"]

_MAX_MESSAGE_BYTES = 16 << 20
_MAX_RECEIVE = "grpc.max_receive_message_length"
_LARGEST_MESSAGE_BYTES = (1 << 31) - 1  # of gRPC, whose option for no limit is -1
_SERVICE_CONFIG: dict[str, object] = {
    # A name that stands for several servers gets its calls spread over them. Retries are made here and not by
    # gRPC, which reads neither RetryInfo nor why a call was cancelled, and stops retrying under many callers.
    "loadBalancingConfig": [{"round_robin": {}}],
}

ChannelOptions = Sequence[tuple[str, Any]]  # Any: gRPC takes int, str or bytes by key


def channel_options(options: ChannelOptions) -> list[tuple[str, Any]]:
    """Returns the options of a channel; those given by the caller come last and win."""
    return [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        (_MAX_RECEIVE, _MAX_MESSAGE_BYTES),
        # gRPC moves a call that a server never saw to another connection, but only while it still holds the
        # request, and it holds 256 KiB by default.
        ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),
        # Finds a dead peer under a call. Servers refuse clients that ping much more often.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A server that restarts is found soon; the default is a second, growing to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        *options,
    ]


def proxy_options(target: Target) -> list[tuple[str, Any]]:
    """Returns what keeps calls to this machine out of the proxy of `http_proxy`, which cannot reach it."""
    return [("grpc.enable_http_proxy", 0)] if target.is_loopback else []


def response_size_metadata(options: ChannelOptions) -> list[tuple[str, str]]:
    """Returns what tells the server how large responses may be, which it otherwise keeps to 4 MiB."""
    limit: int = {_MAX_RECEIVE: _MAX_MESSAGE_BYTES, **dict(options)}[_MAX_RECEIVE]
    return [("alignserve-max-response-bytes", str(limit if limit > 0 else _LARGEST_MESSAGE_BYTES))]
