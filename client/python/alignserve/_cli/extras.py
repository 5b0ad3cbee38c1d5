"""Checks that a command's libraries are installed, and otherwise says which extra brings them."""

from __future__ import annotations

from importlib.util import find_spec


class MissingExtraError(Exception):
    """A library of an extra is not installed."""


def require(*modules: str, extra: str) -> None:
    """Returns if these modules are installed, without importing them.

    Raises:
        MissingExtraError: One of them is not; the message has the command that installs it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"this command needs {', '.join(missing)}; run: pip install 'alignserve[{extra}]'"
        )
