"""Opens the gRPC port, with or without TLS, and sets its channel options."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from alignserve_server.errors import StartupError
from alignserve_server.rpc.tls import Certificates

_MAX_PENDING_CALLS = 100_000
_MIN_CONCURRENT_STREAMS = 1000


@dataclass(frozen=True, slots=True)
class PortOptions:
    """Options of the gRPC port.

    Attributes:
        is_shared: Whether other processes listen on it too, with SO_REUSEPORT.
        max_request_bytes: Maximum size of a request message.
        max_queue_size: Maximum number of waiting items per modality; limits the streams of a connection.
        keepalive_time_seconds: Idle time before a ping.
        keepalive_timeout_seconds: Time for the client to answer a ping.
        max_connection_age_seconds: Age at which clients are told to reconnect; 0 never does.
        max_connection_age_grace_seconds: After that, time for the connection's calls to finish.
    """

    is_shared: bool
    max_request_bytes: int
    max_queue_size: int
    keepalive_time_seconds: float
    keepalive_timeout_seconds: float
    max_connection_age_seconds: float
    max_connection_age_grace_seconds: float

    def channel_options(self) -> list[tuple[str, int]]:
        """Returns the options in the form that `grpc.aio.server` takes."""
        options = {
            # On by default: a second server would start silently on the same port and take calls. With
            # workers, the supervisor reserves the port.
            "grpc.so_reuseport": int(self.is_shared),
            "grpc.max_receive_message_length": self.max_request_bytes,
            "grpc.max_send_message_length": -1,  # checked by `ResponseLimit` instead, before the work
            # By default gRPC drops calls with a plain CANCELLED, first some and then all, once 1000 to 3000
            # wait for the event loop to accept them; admission, which returns QUEUE_FULL, comes later.
            "grpc.server.max_pending_requests": _MAX_PENDING_CALLS,
            "grpc.server.max_pending_requests_hard_limit": _MAX_PENDING_CALLS,
            # Probing raises the window of every stream to megabytes, which a client can then fill while the
            # server does not read. A message being read gets as large a window as it needs in any case.
            "grpc.http2.bdp_probe": 0,
            # Protects against rapid resets. Not for admission: clients do not queue at this limit, they fail.
            "grpc.max_concurrent_streams": max(_MIN_CONCURRENT_STREAMS, 2 * self.max_queue_size),
            "grpc.keepalive_time_ms": _ms(self.keepalive_time_seconds),
            "grpc.keepalive_timeout_ms": _ms(self.keepalive_timeout_seconds),
            "grpc.keepalive_permit_without_calls": 1,
            "grpc.http2.min_ping_interval_without_data_ms": 10_000,
        }
        if self.max_connection_age_seconds:
            options["grpc.max_connection_age_ms"] = _ms(self.max_connection_age_seconds)
            options["grpc.max_connection_age_grace_ms"] = _ms(self.max_connection_age_grace_seconds)
        return list(options.items())


def open_port(server: grpc.aio.Server, listen: str, certificates: Certificates | None) -> int:
    """Makes a server listen on HOST:PORT, with TLS if there are certificates; returns the port.

    Raises:
        StartupError: The port is in use or the address is not one of this machine.
    """
    try:
        if certificates is None:
            return server.add_insecure_port(listen)
        return server.add_secure_port(listen, certificates.grpc_credentials())
    except RuntimeError as error:
        raise StartupError(
            f"cannot listen on {listen}: the port is in use or the address is not one of this machine; "
            "choose another address with --listen"
        ) from error


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
