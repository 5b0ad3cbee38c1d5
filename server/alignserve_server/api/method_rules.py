"""How calls of a method are treated: a row of a door's table of methods."""

from __future__ import annotations

from dataclasses import dataclass

from alignserve_server.access.keys import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRules:
    """What holds for the calls of one method. A door refuses methods without a row."""

    scopes: frozenset[Scope] | None  # one of which a key needs; None: no key is needed
    is_metered: bool = True  # quotas hold, and refusals and priorities are counted by caller
    is_traced: bool = True  # spans and lines of the access log are made
    counts_items: bool = False  # a stream, whose items count as requests and wait for room
    ends_at_drain: bool = False  # a stream that clients leave open, so that a stop cannot wait for it
