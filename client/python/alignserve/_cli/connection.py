"""Connects to the server as the options of a command say."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def server_names(args: argparse.Namespace) -> list[str]:
    """Returns the addresses of a command that takes several servers, without repetitions."""
    given: list[str] = args.servers or [args.server]
    return list(dict.fromkeys(name.strip() for names in given for name in names.split(",") if name.strip()))


def connection(args: argparse.Namespace, server: str | None = None) -> Connection:
    """Returns where and how to connect, by default to `args.server`; exits if options contradict each other.

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
        return Connection.of(args.server if server is None else server, tls)
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
    priority = args.priority or args.default_priority
    return [*found, *key_metadata(key), *priority_metadata(priority)]


def client_options(args: argparse.Namespace, server: str | None = None) -> dict[str, Any]:
    """Returns the arguments of a client for a server, by default `args.server`; see `connection`."""
    where = connection(args, server)
    return {
        "target": where.target.name,
        "timeout_seconds": args.timeout_seconds,
        "tls": where.security.credentials is not None,
        "root_certificates": args.ca_file,
        "client_certificate": args.certificate_file,
        "client_key": args.certificate_key_file,
        "metadata": metadata(args),
    }


def _made(args: argparse.Namespace) -> Client:
    return Client(**client_options(args))
