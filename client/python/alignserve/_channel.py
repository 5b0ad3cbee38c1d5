"""How a channel to the server is set up, for both clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from alignserve._retry import RetryPolicy, service_config_policy
from alignserve.v1 import align_service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["AlignService"]

_MAX_MESSAGE_BYTES = 16 << 20
_MAX_RECEIVE = "grpc.max_receive_message_length"
_LARGEST_MESSAGE_BYTES = (1 << 31) - 1  # of gRPC, whose option for no limit is -1

ChannelOptions = Sequence[tuple[str, Any]]  # Any: gRPC takes int, str or bytes by key


def channel_options(policy: RetryPolicy, options: ChannelOptions) -> list[tuple[str, Any]]:
    """Returns the options of a channel; those given by the caller come last and win."""
    return [
        ("grpc.service_config", json.dumps(_service_config(policy))),
        (_MAX_RECEIVE, _MAX_MESSAGE_BYTES),
        # gRPC repeats a call only while it still holds the request, and holds 256 KiB by default.
        ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),
        # Finds a dead peer under a call. Servers refuse clients that ping much more often.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A server that restarts is found soon; the default is a second, growing to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        *options,
    ]


def response_size_metadata(options: ChannelOptions) -> list[tuple[str, str]]:
    """Returns what tells the server how large responses may be, which it otherwise keeps to 4 MiB."""
    limit: int = {_MAX_RECEIVE: _MAX_MESSAGE_BYTES, **dict(options)}[_MAX_RECEIVE]
    return [("alignserve-max-response-bytes", str(limit if limit > 0 else _LARGEST_MESSAGE_BYTES))]


def _service_config(policy: RetryPolicy) -> dict[str, object]:
    config: dict[str, object] = {
        # A name that stands for several servers gets its calls spread over them.
        "loadBalancingConfig": [{"round_robin": {}}],
    }
    retry_policy = service_config_policy(policy)
    if retry_policy is not None:
        config["methodConfig"] = [{"name": _unary_methods(), "retryPolicy": retry_policy}]
        # Room for a server's restart under a hundred calls, but no storm against one that is down.
        config["retryThrottling"] = {"maxTokens": 100, "tokenRatio": 0.1}
    return config


def _unary_methods() -> list[dict[str, str]]:
    # Streams are left out: what they sent is known to `alignserve` alone, which reconnects them itself.
    return [
        {"service": SERVICE.full_name, "method": method.name}
        for method in SERVICE.methods
        if not method.client_streaming
    ]
