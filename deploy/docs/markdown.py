"""Markdown that pages are generated in."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, has_figures: bool = False) -> str:
    """Returns a table, or nothing without rows. `has_figures` aligns all columns but the first right."""
    if not rows:
        return ""
    aligned = ["---", *(["--:" if has_figures else "---"] * (len(header) - 1))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, aligned, *rows))
