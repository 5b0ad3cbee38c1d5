"""How a channel to the server is set up, for both clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from alignserve.v1 import align_service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["AlignService"]

_MAX_MESSAGE_BYTES = 16 << 20
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
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
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
