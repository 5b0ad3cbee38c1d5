"""The connection that the options of a command ask for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from alignserve._client import Client
from alignserve._terms import priority_metadata


@contextmanager
def connected(args: argparse.Namespace) -> Iterator[Client]:
    """Yields a client, once the server is ready if that is to be waited for."""
    with Client(
        args.server,
        timeout_seconds=args.timeout_seconds,
        credentials=credentials(args),
        metadata=metadata(args),
    ) as client:
        if args.wait_seconds:
            client.wait_until_ready(args.wait_seconds)
        yield client


def credentials(args: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """Returns what TLS needs, or `None` for a connection in the clear.

    Raises:
        OSError: The file of certificates cannot be read.
    """
    if not args.tls and not args.ca_file:
        return None
    return grpc.ssl_channel_credentials(args.ca_file.read_bytes() if args.ca_file else None)


def metadata(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns the headers of every call."""
    found: list[tuple[str, str]] = args.headers + args.more_headers + priority_metadata(args.priority)
    return found
