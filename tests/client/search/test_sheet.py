"""The contact sheet: one file, nothing in it acts, and it can be read without seeing it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from alignserve.search.sheet import Card, Picture, Sheet, Term, html

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</bdi></li><h1>",
    "&lt;b&gt; &amp;",
    "a\nb\r\0c\x1b[31m",
    "abc\u202egpj.exe\u2066",
    "\udcff\ud800",
    "-->",
    "]]>",
]
PICTURE = Picture("image/jpeg", b"\xff\xd8\xff picture")


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(*cards: Card, **sheet: Any) -> Page:
    return Page(html(Sheet(**{"terms": [Term("“a cat”")], "cards": cards, **sheet})))


@pytest.mark.parametrize("text", HOSTILE)
def test_what_the_store_has_is_text(text: str) -> None:
    """Keys, columns, captions, filters and queries add no element and no attribute."""
    plain = page_of(
        Card("key", 0.5, {"text": "caption", "name": "value"}, PICTURE),
        terms=[Term("q")],
        facts={"Filter": "f"},
    )
    page = page_of(
        Card(text, 0.5, {"text": text, "name": text}, PICTURE), terms=[Term(text)], facts={"Filter": text}
    )

    assert [(tag, set(attributes)) for tag, attributes in page.elements] == [
        (tag, set(attributes)) for tag, attributes in plain.elements
    ]
    assert not page.all("script")


def test_invisible_characters_are_written_out() -> None:
    """A name cannot be shown in another direction or hide its end; the page is UTF-8 whatever the name is."""
    content = html(Sheet([Term("q")], [Card("abc\u202egpj.exe\0\n\udcff", 0.5)]))

    assert r"abc\u202egpj.exe\x00\n\xff" in Page(content).text
    content.encode()


def test_joiners_and_other_scripts_stay() -> None:
    """They are text, not control."""
    text = "می‌خواهم 👩‍🚀 ünï é"

    assert text in page_of(Card(text, 0.5)).text


def test_the_file_needs_no_other() -> None:
    """Pictures are inside it, and its policy allows nothing else, not even a style of its own making."""
    content = html(Sheet([Term("q", picture=PICTURE)], [Card("a", 0.5, {}, PICTURE)]))
    page = Page(content)

    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
    style = re.search(r"<style>(.*)</style>", content, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    pictures = [image["src"] for image in page.all("img")]
    assert pictures == [f"data:image/jpeg;base64,{base64.b64encode(PICTURE.content).decode()}"] * 2
    assert not page.all("script")
    assert not page.all("link")
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_pictures_have_alternatives() -> None:
    """A caption if there is one, and else the key; a picture of the query is named beside it."""
    page = page_of(
        Card("a.jpg", 0.5, {"caption": "a  red\nbag", "width": 3}, PICTURE),
        Card("b.jpg", 0.5, {"text": " "}, PICTURE),
        terms=[Term("bag.jpg", picture=PICTURE)],
    )

    assert [image["alt"] for image in page.all("img")] == ["", "a red bag", "Picture b.jpg"]


def test_a_row_without_a_picture_says_why() -> None:
    """The row is shown all the same."""
    page = page_of(Card("gone.jpg", 0.25, missing="gone.jpg is not there"))

    assert "gone.jpg is not there" in page.text
    assert "similarity 0.2500" in page.text


def test_an_answer_without_rows_says_so() -> None:
    """The page is not empty."""
    assert "No row was found." in page_of().text


def test_the_query_is_shown_with_signs_and_weights() -> None:
    """As it was asked."""
    page = page_of(terms=[Term("“a bag”"), Term("“red”", 0.5), Term("“leather”", -1.0), Term("“old”", -0.25)])

    times, minus = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
    for text in ("+ “a bag”", f"+ 0.5 {times} “red”", f"{minus} “leather”", f"{minus} 0.25 {times} “old”"):
        assert text in page.text


@pytest.mark.parametrize(
    ("url", "is_link"),
    [
        ("https://example.org/a.jpg?x=1&y='\"<>", True),
        ("http://example.org", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("https:///nothing", False),
        ("https://[", False),
        ("see https://example.org", False),
        ("https://example.org/\u202egpj", False),
    ],
)
def test_addresses_of_pages_are_links_and_nothing_else_is(url: str, is_link: bool) -> None:
    """A link sends no referrer, and cannot run a script."""
    links = page_of(Card("a", 0.5, {"url": url})).all("a")

    assert [link["href"] for link in links] == ([url] if is_link else [])
    assert all(link["rel"] == "noopener noreferrer" for link in links)


def test_the_servers_page_is_linked() -> None:
    """Where the user says that it is on."""
    assert [link["href"] for link in page_of(page="http://127.0.0.1:8080/").all("a")] == [
        "http://127.0.0.1:8080/"
    ]


def test_long_values_are_shortened() -> None:
    """A column may have a page of text."""
    assert len(page_of(Card("a", 0.5, {"text": "x" * 100_000})).text) < 10_000
