"""Checks of installed packages against the versions that this release supports."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from alignserve_server.cli.check.report import CheckWarning

_DISTRIBUTIONS = ("alignserve-server", "alignserve")
_SHOWN = (
    "alignserve-server",
    "grpcio",
    "protobuf",
    "openvino",
    "torch",
    "transformers",
    "tokenizers",
    "pillow",
)


def check_packages() -> str:
    """Compares every installed package with what the distributions require, extras included."""
    wrong = list(dict.fromkeys(unsupported(requirements())))
    if wrong:
        raise CheckWarning("; ".join(wrong))
    shown = [f"{name} {found}" for name in _SHOWN if (found := installed(name)) is not None]
    return ", ".join([f"Python {platform.python_version()}", *shown])


def requirements() -> Iterator[Requirement]:
    """Yields what the distributions require, whatever the extra."""
    for distribution in _DISTRIBUTIONS:
        try:
            lines = requires(distribution) or ()
        except PackageNotFoundError:  # run from a folder
            continue
        yield from map(Requirement, lines)


def unsupported(needed: Iterator[Requirement]) -> Iterator[str]:
    """Yields what to do about each package that is installed in another version than required."""
    for requirement in needed:
        found = installed(requirement.name)
        if found is not None and not requirement.specifier.contains(found, prereleases=True):
            supported = f"{requirement.name}{requirement.specifier}"
            yield f"{requirement.name} {found} is not supported; pip install '{supported}'"


def installed(name: str) -> str | None:
    """Returns the version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
