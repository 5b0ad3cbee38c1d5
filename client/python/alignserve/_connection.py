"""The connection that the options of a command ask for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from alignserve._client import Client
from alignserve._terms import key_metadata, priority_metadata


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
        OSError: A file of certificates cannot be read.
    """
    files = (args.ca_file, args.certificate_key_file, args.certificate_file)
    if not args.tls and not any(files):
        return None
    if (args.certificate_file is None) != (args.certificate_key_file is None):
        args.usage_error("--certificate-file and --certificate-key-file belong together")
    return grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files))


def metadata(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns the headers of every call.

    Raises:
        OSError: The file of the key cannot be read.
    """
    found: list[tuple[str, str]] = args.headers + args.more_headers
    return [*found, *key_metadata(_api_key(args)), *priority_metadata(args.priority)]


def _api_key(args: argparse.Namespace) -> str | None:
    if args.api_key_file is not None:
        key: str = args.api_key_file.read_text()
        return key
    return os.environ.get("ALIGNSERVE_API_KEY") or None
