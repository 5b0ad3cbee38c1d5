"""Connects to the server as the options of a command say."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from alignserve._call_defaults import key_metadata, priority_metadata
from alignserve._client import Client
from alignserve._environment import Connection, Tls, default_api_key


@contextmanager
def connected(args: argparse.Namespace) -> Iterator[Client]:
    """Yields a client, after waiting for the server if the options ask for it."""
    with _made(args) as client:
        if args.wait_seconds:
            client.wait_until_ready(args.wait_seconds)
        yield client


def connection(args: argparse.Namespace) -> Connection:
    """Returns where and how to connect; exits if options contradict each other.

    Raises:
        OSError: A certificate file cannot be read.
    """
    tls = Tls(
        is_on=args.tls or None,
        root_certificates=args.ca_file,
        client_certificate=args.certificate_file,
        client_key=args.certificate_key_file,
    )
    try:
        return Connection.of(args.server, tls)
    except ValueError as error:
        return args.usage_error(str(error))  # type: ignore[no-any-return]  # it does not return


def metadata(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns the headers of every call.

    Raises:
        OSError: The key file cannot be read.
        ValueError: ALIGNSERVE_API_KEY is empty.
    """
    found: list[tuple[str, str]] = args.headers + args.more_headers
    key = args.api_key_file.read_text() if args.api_key_file else default_api_key(found)
    return [*found, *key_metadata(key), *priority_metadata(args.priority)]


def _made(args: argparse.Namespace) -> Client:
    where = connection(args)
    return Client(
        where.target.name,
        timeout_seconds=args.timeout_seconds,
        tls=where.security.credentials is not None,
        root_certificates=args.ca_file,
        client_certificate=args.certificate_file,
        client_key=args.certificate_key_file,
        metadata=metadata(args),
    )
