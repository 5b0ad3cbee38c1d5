"""The rules for calls of a method: a row of a door's table of methods."""

from __future__ import annotations

from dataclasses import dataclass

from alignserve_server.access.keys import Scope

ANY_SCOPE = frozenset(Scope)  # of methods that describe the model or the server: every valid key permits them


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRules:
    """The rules for calls of one method. A door refuses methods without a row."""

    scopes: frozenset[Scope] | None  # a key needs one of them; None if no key is needed
    is_metered: bool = True  # quotas apply, and refusals and priorities are counted by caller
    is_traced: bool = True  # calls can have spans and lines in the access log
    counts_items: bool = False  # a stream whose items count as requests, and wait for room in the queue
    names_reason: bool = False  # in error messages, for protocols whose clients read nothing else
    ends_at_drain: bool = False  # a stream that clients keep open, so a stop ends it instead of waiting
