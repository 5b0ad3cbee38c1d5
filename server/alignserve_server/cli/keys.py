"""The command `alignserve-server keys`: creates, lists and revokes API keys."""

from __future__ import annotations

import argparse
import math
import os
import sys
from datetime import date
from pathlib import Path

from alignserve_server.access.keys import KeysError, Scope, changed_keys, new_key, read_keys
from alignserve_server.cli.command import add_renamed_flags, command_failed, command_parser
from alignserve_server.settings.renamed import outdated
from alignserve_server.settings.sources import of_environment

_EXAMPLES = """\
examples:
  alignserve-server keys --api-keys-file keys.json add search --scopes embed
  alignserve-server keys --api-keys-file keys.json add batch --max-requests-per-second 50 --expires 2027-01-01
  alignserve-server keys --api-keys-file keys.json list
  alignserve-server keys --api-keys-file keys.json revoke search
  alignserve-server --api-keys-file keys.json

A key is shown only once, when it is created; the file contains salted hashes. A running server applies
changes within a second. Clients send the key as metadata: authorization: Bearer KEY.
"""


def run(argv: list[str]) -> int:
    """Runs the command.

    Returns:
        The exit code: 0, 1 if the file cannot be read or changed, 2 for invalid usage.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.action(arguments) or 0)
    except KeysError as error:
        return command_failed("keys", str(error), 1)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("keys", "Creates, lists and revokes the API keys of a server.", _EXAMPLES)
    default = _file_of_environment(parser)
    add_renamed_flags(parser, "keys_file")
    parser.add_argument(
        "--api-keys-file",
        metavar="FILE",
        type=Path,
        default=default,
        required=default is None,
        help="file of API keys (default: the variable ALIGNSERVE_API_KEYS_FILE)",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add = commands.add_parser("add", help="create a key and print it", allow_abbrev=False)
    add.add_argument("name", help="name of the key and of its caller: 1-63 characters from a-z, 0-9 and -")
    add.add_argument(
        "--scopes",
        type=_scopes,
        default=frozenset({Scope.EMBED, Scope.CLASSIFY}),
        metavar="SCOPE[,SCOPE…]",
        help=f"methods that the key permits: one or more of {','.join(Scope)} (default: embed,classify)",
    )
    add.add_argument(
        "--max-requests-per-second",
        metavar="N",
        type=float,
        help="maximum calls and stream items per second and server (default: no limit)",
    )
    add.add_argument(
        "--max-concurrent-requests",
        metavar="N",
        type=int,
        help="maximum concurrent calls per server; a stream is one call (default: no limit)",
    )
    add.add_argument(
        "--expires",
        metavar="DATE",
        type=_date,
        help="first day on which the key is no longer valid (default: never expires)",
    )
    add.set_defaults(action=_add)
    listing = commands.add_parser("list", help="list the keys, without their secrets", allow_abbrev=False)
    listing.set_defaults(action=_list)
    revoke = commands.add_parser("revoke", help="delete a key", allow_abbrev=False)
    revoke.add_argument("name", help="name of the key to delete")
    revoke.set_defaults(action=_revoke)
    return parser


def _file_of_environment(parser: argparse.ArgumentParser) -> str | None:
    """Returns the file that the environment names; ends the command if it uses an earlier name."""
    given = of_environment(os.environ, ("api_keys_file", "keys_file"))
    for name, one in given.items():
        if (problem := outdated(name, one)) is not None:
            parser.error(str(problem))
    path = given["api_keys_file"].value.strip() if "api_keys_file" in given else ""
    return None if path.lower() in ("", "none") else path


def _add(arguments: argparse.Namespace) -> None:
    for name in ("max_requests_per_second", "max_concurrent_requests"):
        limit = getattr(arguments, name)
        if limit is not None and not 0 < limit < math.inf:
            raise KeysError(
                f"--{name.replace('_', '-')} {limit:g}: must be greater than 0; omit it for no limit"
            )
    with changed_keys(arguments.api_keys_file) as keys:
        if arguments.name in keys:
            raise KeysError(f"key {arguments.name!r} already exists; revoke it first or use another name")
        key, keys[arguments.name] = new_key(
            arguments.name,
            arguments.scopes,
            max_requests_per_second=arguments.max_requests_per_second,
            max_concurrent_requests=arguments.max_concurrent_requests,
            expires=arguments.expires,
        )
    print("Save this key; it is not shown again:", file=sys.stderr)
    print(key)


def _list(arguments: argparse.Namespace) -> None:
    rows = [("NAME", "SCOPES", "PER SECOND", "CONCURRENT", "CREATED", "EXPIRES")]
    for name, key in read_keys(arguments.api_keys_file).items():
        limits = (key.max_requests_per_second, key.max_concurrent_requests)
        per_second, at_once = ("-" if limit is None else f"{limit:g}" for limit in limits)
        expires = "never" if key.expires is None else str(key.expires)
        rows.append((name, ",".join(sorted(key.scopes)), per_second, at_once, str(key.created), expires))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _revoke(arguments: argparse.Namespace) -> None:
    with changed_keys(arguments.api_keys_file) as keys:
        if keys.pop(arguments.name, None) is None:
            raise KeysError(f"unknown key {arguments.name!r}; 'keys list' shows all keys")
    print(f"revoked {arguments.name}", file=sys.stderr)


def _scopes(text: str) -> frozenset[Scope]:
    try:
        return frozenset(map(Scope, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid scopes {text!r}: use one or more of {','.join(Scope)}"
        ) from None


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid date {text!r}: use YYYY-MM-DD, for example 2027-01-31"
        ) from None
