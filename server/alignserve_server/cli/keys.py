"""The command `alignserve-server keys`: makes, lists and revokes API keys."""

from __future__ import annotations

import argparse
import math
import os
import sys
from datetime import date
from pathlib import Path

from alignserve_server.access.keys import KeysError, Scope, changed_keys, new_key, read_keys

_EXAMPLES = """\
examples:
  alignserve-server keys --api-keys-file keys.json add search --scopes embed
  alignserve-server keys --api-keys-file keys.json add batch --max-requests-per-second 50 --expires 2027-01-01
  alignserve-server keys --api-keys-file keys.json list
  alignserve-server keys --api-keys-file keys.json revoke search
  alignserve-server --api-keys-file keys.json

A key is shown once, when it is made; the file holds salted hashes. A running server takes changes over within
a second. Callers send the key as metadata: authorization: Bearer KEY.
"""


def run(argv: list[str]) -> int:
    """Runs the command.

    Returns:
        The exit code: 0, 1 if the file cannot be read or changed so, 2 for wrong usage.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.action(arguments) or 0)
    except KeysError as error:
        print(f"alignserve-server keys: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alignserve-server keys",
        description="Makes, lists and revokes the API keys of a server.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    of_environment = os.environ.get("ALIGNSERVE_API_KEYS_FILE", "").strip() or None  # empty is unset
    if of_environment == "none":
        of_environment = None
    parser.add_argument(
        "--api-keys-file",
        metavar="FILE",
        type=Path,
        default=of_environment,
        required=of_environment is None,
        help="file of the keys (default: ALIGNSERVE_API_KEYS_FILE)",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add = commands.add_parser("add", help="make a key and print it", allow_abbrev=False)
    add.add_argument("name", help="whose it is: 1 to 63 of a-z, 0-9 and -")
    add.add_argument(
        "--scopes",
        type=_scopes,
        default=frozenset({Scope.EMBED, Scope.CLASSIFY}),
        help=f"what it may be used for, of {','.join(Scope)} (default: embed,classify)",
    )
    add.add_argument(
        "--max-requests-per-second",
        metavar="N",
        type=float,
        help="most calls and stream items a second, in each server process (default: no limit)",
    )
    add.add_argument(
        "--max-concurrent-requests",
        metavar="N",
        type=int,
        help="most calls at once, in each server process; a stream is one (default: no limit)",
    )
    add.add_argument(
        "--expires", metavar="DATE", type=_date, help="first day on which it is not valid any more"
    )
    add.set_defaults(action=_add)
    listing = commands.add_parser("list", help="list the keys, without what is secret", allow_abbrev=False)
    listing.set_defaults(action=_list)
    revoke = commands.add_parser("revoke", help="make a key invalid", allow_abbrev=False)
    revoke.add_argument("name")
    revoke.set_defaults(action=_revoke)
    return parser


def _add(arguments: argparse.Namespace) -> None:
    for name in ("max_requests_per_second", "max_concurrent_requests"):
        limit = getattr(arguments, name)
        if limit is not None and not 0 < limit < math.inf:
            raise KeysError(
                f"--{name.replace('_', '-')} {limit:g}: must be greater than 0; leave it out for no limit"
            )
    with changed_keys(arguments.api_keys_file) as keys:
        if arguments.name in keys:
            raise KeysError(f"there is a key {arguments.name!r}; revoke it first, or take another name")
        key, keys[arguments.name] = new_key(
            arguments.name,
            arguments.scopes,
            max_requests_per_second=arguments.max_requests_per_second,
            max_concurrent_requests=arguments.max_concurrent_requests,
            expires=arguments.expires,
        )
    print("Keep this key; it is not shown again:", file=sys.stderr)
    print(key)


def _list(arguments: argparse.Namespace) -> None:
    rows = [("NAME", "SCOPES", "PER SECOND", "AT ONCE", "CREATED", "EXPIRES")]
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
            raise KeysError(f"there is no key {arguments.name!r}; 'keys list' shows those there are")
    print(f"revoked {arguments.name}", file=sys.stderr)


def _scopes(text: str) -> frozenset[Scope]:
    try:
        return frozenset(map(Scope, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: scopes are {','.join(Scope)}") from None


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date such as 2027-01-31") from None
