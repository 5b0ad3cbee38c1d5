"""NOTICE: every work that the checkpoint was made from, with its licence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_WIDTH = 106


@dataclass(frozen=True)
class Credit:
    """A photograph, or a collection of them."""

    title: str
    author: str
    licence: str
    source: str


def written(template: str, credits_of_photos: Iterable[Credit]) -> str:
    """The template, with the photographs by licence in place of `{photographs}`."""
    by_licence: dict[str, list[Credit]] = {}
    for credit in credits_of_photos:
        by_licence.setdefault(credit.licence, []).append(credit)
    lines = []
    for licence in sorted(by_licence):
        lines.append(f"  {licence}")
        each = sorted({f"    {one.title}, by {one.author}, from {one.source}" for one in by_licence[licence]})
        lines += each
    return template.replace("{photographs}", "\n".join(lines) if lines else "  None.")


def template() -> str:
    """The text around the photographs."""
    return (Path(__file__).parent / "NOTICE.in").read_text("utf-8")
