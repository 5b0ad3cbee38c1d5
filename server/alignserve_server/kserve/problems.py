"""What errors repeat of a request: names, with a hint at what was meant, and its id."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from alignserve_server.errors import ServingError
from alignserve_server.rpc.status import REQUEST_ID

MAX_ID_CHARACTERS = 1024  # responses repeat ids, and errors have no limit on their size otherwise
_SHOWN_CHARACTERS = 64  # of what a caller sent: a status has to fit into the metadata that clients accept


def shown(sent: str) -> str:
    """Returns what a caller sent, quoted, and cut if it is long."""
    return repr(_cut(sent))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Returns the complaint about a name that is none of the known ones."""
    names = sorted(known)
    if not names:
        return f"unknown {what} {shown(name)}; there are none"
    close = get_close_matches(name[:_SHOWN_CHARACTERS], names, n=1)
    hint = f"did you mean {close[0]!r}? known" if close else "known"
    return f"unknown {what} {shown(name)}; {hint}: {', '.join(names)}"


def with_request_id(error: ServingError, request_id: str) -> ServingError:
    """Returns an equal error that also names the request, if the request has an id."""
    if not request_id:
        return error
    named = error.again()
    named.metadata = {**error.metadata, REQUEST_ID: _cut(request_id)}
    return named


def _cut(sent: str) -> str:
    return sent if len(sent) <= _SHOWN_CHARACTERS else f"{sent[:_SHOWN_CHARACTERS]}…"
