"""NOTICE: every work that the checkpoint was made from, with its licence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Credit:
    """Whom to credit for a photograph. `title` is its file, `source` where it is from."""

    title: str
    author: str
    licence: str
    source: str


def written(template: str, credits_of_photos: Iterable[Credit]) -> str:
    """The template, with the photographs by licence in place of `{photographs}`.

    Photographs of one author from one place share a line.
    """
    titles: dict[tuple[str, str, str], list[str]] = {}
    for credit in credits_of_photos:
        titles.setdefault((credit.licence, credit.author, credit.source), []).append(credit.title)
    lines: list[str] = []
    for licence, author, source in sorted(titles):
        if f"  {licence}" not in lines:
            lines.append(f"  {licence}")
        own = titles[licence, author, source]
        what = own[0] if len(own) == 1 else f"{len(own)} photographs"
        lines.append(f"    {author}: {what} from {source}")
    return template.replace("{photographs}", "\n".join(lines) or "  None.")


def template() -> str:
    """The text around the photographs."""
    return (Path(__file__).parent / "NOTICE.in").read_text("utf-8")
