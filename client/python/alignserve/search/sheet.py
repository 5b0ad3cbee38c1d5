"""A contact sheet: the answer to a query as one HTML file, which needs no other file and no script.

Whatever the store has is text in it: it is escaped, invisible characters are written out, and the page's own
policy allows no script, no foreign style and no picture but those inside the file.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from alignserve.search.visible import visible

_LONGEST_VALUE = 500  # characters of a column's value
_CAPTIONS = ("text", "caption", "title", "alt")  # columns that describe a picture, the best first


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture inside the sheet.

    Attributes:
        media_type: One that browsers show as a picture, such as `image/jpeg`.
        content: The bytes of its file.
    """

    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Term:
    """A term of the query, as shown.

    Attributes:
        text: The text, or the name of the picture or row.
        weight: Its weight.
        picture: Of an image, if there is one to show.
    """

    text: str
    weight: float = 1.0
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """A row that was found.

    Attributes:
        key: Of the row.
        similarity: To the query.
        columns: Of the row.
        picture: To show, or `None`.
        missing: Why there is no picture.
    """

    key: str
    similarity: float
    columns: Mapping[str, Any] = field(default_factory=dict)
    picture: Picture | None = None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a contact sheet shows.

    Attributes:
        terms: Of the query.
        cards: Best first.
        facts: Further lines, such as the filter and the store, by name.
        page: URL of the server's page, or empty.
    """

    terms: Sequence[Term]
    cards: Sequence[Card]
    facts: Mapping[str, str] = field(default_factory=dict)
    page: str = ""


def html(sheet: Sheet) -> str:
    """Returns the sheet as HTML."""
    style = resources.files(__package__).joinpath("sheet.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    title = f"Search: {' '.join(_signed(term) for term in sheet.terms)}"
    shown = len(sheet.cards)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{_count(shown)} for this query</h1>
<ul class="query" role="list" aria-label="Query">
{"".join(map(_term, sheet.terms))}</ul>
{_facts(sheet.facts)}{_page(sheet.page)}</header>
<main>
{_cards(sheet.cards)}</main>
<footer><p>Similarity is the cosine of the embeddings of query and row, from &minus;1 to 1.</p></footer>
</body>
</html>
"""


def _cards(cards: Sequence[Card]) -> str:
    if not cards:
        return "<p>No row was found.</p>\n"
    shown = "".join(_card(rank, card) for rank, card in enumerate(cards, start=1))
    return f'<ol class="hits" role="list">\n{shown}</ol>\n'


def _card(rank: int, card: Card) -> str:
    picture = _image(card.picture, _description(card)) if card.picture else _blank(card.missing)
    return (
        f"<li>{picture}"
        f'<div class="about"><p class="rank"><span>{rank}</span>'
        f"<span>similarity {card.similarity:.4f}</span></p>"
        f'<p class="key">{_isolated(card.key)}</p>{_columns(card, rank)}</div></li>\n'
    )


def _columns(card: Card, rank: int) -> str:
    values = {name: value for name, value in card.columns.items() if value is not None}
    if not values:
        return ""
    rows = "".join(f"<dt>{_isolated(name)}</dt><dd>{_value(value)}</dd>" for name, value in values.items())
    return (
        f'<details><summary>Columns<span class="hidden"> of row {rank}</span></summary>'
        f"<dl>{rows}</dl></details>"
    )


def _value(value: Any) -> str:
    text = str(value)
    if isinstance(value, str) and _is_link(value):
        return f'<a href="{escape(value)}" rel="noopener noreferrer">{_isolated(_shortened(text))}</a>'
    return _isolated(_shortened(text))


def _description(card: Card) -> str:
    """Returns what stands for the picture where it cannot be seen."""
    captions = (card.columns.get(name) for name in _CAPTIONS)
    caption = next((text for text in captions if isinstance(text, str) and text.strip()), "")
    return _shortened(" ".join(caption.split())) or f"Picture {card.key}"


def _term(term: Term) -> str:
    picture = _image(term.picture, "") if term.picture else ""  # its name stands beside it
    return f"<li>{picture}<span>{_isolated(_signed(term))}</span></li>\n"


def _signed(term: Term) -> str:
    sign = "\N{MINUS SIGN}" if term.weight < 0 else "+"
    size = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} \N{MULTIPLICATION SIGN} "
    return f"{sign} {size}{_shortened(term.text)}"


def _facts(facts: Mapping[str, str]) -> str:
    return "".join(
        f'<p class="facts">{_text(name)}: {_isolated(value)}</p>\n' for name, value in facts.items()
    )


def _page(url: str) -> str:
    if not _is_link(url):
        return ""
    text = "Search other pictures on the page of the server"
    link = f'<a href="{escape(url)}" rel="noopener noreferrer">{text}</a>'
    return f'<p class="note">{link}</p>\n'


def _image(picture: Picture, description: str) -> str:
    content = base64.b64encode(picture.content).decode()
    return f'<img src="data:{escape(picture.media_type)};base64,{content}" alt="{_text(description)}">'


def _blank(reason: str) -> str:
    return f'<p class="blank note">{_text(reason or "no picture")}</p>'


def _count(number: int) -> str:
    return "No rows" if number == 0 else "1 row" if number == 1 else f"{number:,} rows"


def _is_link(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https") and bool(parts.netloc) and visible(text) == text and " " not in text
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _isolated(text: str) -> str:
    """Returns a text whose direction does not affect what stands around it."""
    return f"<bdi>{_text(text)}</bdi>"


def _text(text: str) -> str:
    return escape(visible(text))
