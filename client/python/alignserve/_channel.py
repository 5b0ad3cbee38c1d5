"""Channel options for both clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from alignserve._targets import Target
from alignserve.v1 import align_service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["AlignService"]

_MAX_MESSAGE_BYTES = 16 << 20
_MAX_RECEIVE = "grpc.max_receive_message_length"
_GRPC_MAX_MESSAGE_BYTES = (1 << 31) - 1  # gRPC's maximum; its option for "no limit" is -1
_SERVICE_CONFIG: dict[str, object] = {
    # Spreads calls over all servers that a name resolves to. The client retries by itself, and not by gRPC,
    # which reads neither RetryInfo nor the reason for a cancellation, and stops retrying under many callers.
    "loadBalancingConfig": [{"round_robin": {}}],
}

ChannelOptions = Sequence[tuple[str, Any]]  # Any: gRPC takes int, str or bytes by key


def channel_options(options: ChannelOptions) -> list[tuple[str, Any]]:
    """Returns the options of a channel; the caller's options come last and win."""
    return [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        (_MAX_RECEIVE, _MAX_MESSAGE_BYTES),
        # gRPC retries a call that the server never saw on another connection, but only while it still buffers
        # the request, and by default it buffers 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),
        # Detects a dead peer during a call. Servers refuse clients that ping much more often.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Reconnects soon after a server restarts; the default starts at a second and grows to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        *options,
    ]


def proxy_options(target: Target) -> list[tuple[str, Any]]:
    """Returns the option that bypasses the `http_proxy` for this machine, which a proxy cannot reach."""
    return [("grpc.enable_http_proxy", 0)] if target.is_loopback else []


def response_size_metadata(options: ChannelOptions) -> list[tuple[str, str]]:
    """Returns the metadata that tells the server how large responses may be, instead of 4 MiB."""
    limit: int = {_MAX_RECEIVE: _MAX_MESSAGE_BYTES, **dict(options)}[_MAX_RECEIVE]
    return [("alignserve-max-response-bytes", str(limit if limit > 0 else _GRPC_MAX_MESSAGE_BYTES))]
