"""Reads tables, code blocks, links and headings out of Markdown."""

from __future__ import annotations

import re

from tests.processes import ROOT

_FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)  # indented in a list
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def read(path: str) -> str:
    """Returns the text of a file, by its path from the root of the repository."""
    return (ROOT / path).read_text()


def rows(text: str, *columns: str) -> list[dict[str, str]]:
    """Returns the rows of every table that has exactly these columns, without backticks around a cell."""
    found: list[dict[str, str]] = []
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
        elif not header:
            header = _cells(line)
        elif header == list(columns) and not set(line) <= set("|-: "):
            found.append(dict(zip(header, _cells(line), strict=True)))
    return found


def code_blocks(text: str, language: str) -> list[str]:
    """Returns the contents of the fenced blocks in a language."""
    return [block for name, block in _FENCE.findall(text) if name == language]


def links(text: str) -> list[str]:
    """Returns the targets of links that lead into the repository."""
    prose = _FENCE.sub("", text)
    return [target for target in _LINK.findall(prose) if "://" not in target]


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub makes of the headings."""
    prose = _FENCE.sub("", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose)}


def _cells(line: str) -> list[str]:
    return [cell.strip().removeprefix("`").removesuffix("`") for cell in line.strip().strip("|").split("|")]
