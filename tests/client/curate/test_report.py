"""The report says what each rule removed, and shows it without harm to the reader."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from alignserve.curate.report import KEPT, Removed, Report
from alignserve.datasets.row import Row, RowFailure

_RULES = {"TOO_SMALL": "smaller side under 200 goes", "DUPLICATE": "duplicates go"}


def _row(number: int, text: str | None = "a cat", **columns: object) -> Row:
    return Row(f"row-{number}", b"image", text, columns)


def _report(**options: object) -> Report:
    return Report(rules=_RULES, measures=["width"], **options)  # type: ignore[arg-type]


def _filled(numbers: list[int], report: Report) -> Report:
    for number in numbers:
        reasons = [name for name, step in (("TOO_SMALL", 3), ("DUPLICATE", 5)) if number % step == 0]
        report.add(_row(number, width=number), reasons)
    return report


class _Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(report: Report, folder: Path) -> str:
    report.write_html(folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_each_row_is_counted_once_by_its_first_reason() -> None:
    """And once more by each reason, and by the reason that is the only one."""
    report = _filled(list(range(1, 31)), _report())
    report.add(Row("broken", failure=RowFailure("IMAGE_UNREADABLE", "broken")), [])

    assert report.removed() == {"TOO_SMALL": Removed(10, 10, 8), "DUPLICATE": Removed(4, 6, 4)}
    assert (report.rows_in, report.kept, report.dropped, dict(report.failed)) == (31, 16, 14, {"IMAGE_UNREADABLE": 1})


def test_a_rule_that_removes_nothing_is_listed() -> None:
    """In the order of the rules; reasons that are not rules come behind them."""
    report = _report()
    report.add(_row(1), ["OTHER"])

    assert list(report.removed()) == ["TOO_SMALL", "DUPLICATE", "OTHER"]


def test_parts_in_any_order_make_the_same_report() -> None:
    """Shards can be counted apart, and a run can resume from the state."""
    numbers = list(range(500))
    whole = _filled(numbers, _report(examples=3))
    random.Random(4).shuffle(numbers)

    merged = _filled(numbers[:200], _report(examples=3))
    merged.restore(json.loads(json.dumps(_filled(numbers[200:], _report(examples=3)).state())))

    assert merged.data(thumbnails=True) == whole.data(thumbnails=True)
    assert merged.state() == whole.state()


def test_reports_with_other_rules_are_not_merged() -> None:
    """Their numbers would mean other things."""
    with pytest.raises(ValueError, match="cannot be merged"):
        _report().merge(Report())


def test_examples_are_few_and_from_everywhere() -> None:
    """A bounded number for each reason, with few thumbnails made on the way."""
    made: list[bytes | Path] = []

    def thumbnail(image: bytes | Path) -> bytes:
        made.append(image)
        return b"jpeg"

    report = _filled(list(range(3000)), _report(examples=4, thumbnail=thumbnail))

    examples = report.examples()
    assert list(examples) == ["TOO_SMALL", "DUPLICATE", KEPT]
    assert {len(found) for found in examples.values()} == {4}
    assert max(int(one.key[4:]) for found in examples.values() for one in found) > 1000
    assert len(made) < 150


def test_long_texts_and_keys_are_cut() -> None:
    """An example is for looking at."""
    report = _report()
    report.add(Row("k" * 1000, text="t" * 5000), [])

    (example,) = report.examples()[KEPT]
    assert (len(example.key), len(example.text or "")) == (200, 300)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</p></main><img src=x onerror=alert(1)>",
        "\"onmouseover='alert(1)'",
        "&lt;script&gt;",
        "javascript:alert(1)",
        "<!--",
        "]]><svg/onload=alert(1)>",
    ],
)
def test_what_a_text_says_is_shown_not_done(text: str, tmp_path: Path) -> None:
    """In captions, keys, reasons, columns and boundaries alike."""
    report = Report(rules={text: text}, measures=[text], thumbnail=lambda _: text.encode())
    report.add(Row(text, b"image", text, {text: 1}), [text, "OTHER"])

    parsed = _Page(_page(report, tmp_path))

    assert text in parsed.text
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "div", "table"}
    allowed |= {"caption", "tr", "th", "td", "svg", "rect", "details", "summary", "ul", "li", "img", "br", "bdi"}
    assert {tag for tag, _ in parsed.tags} <= allowed
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert all(
        (attributes["src"] or "").startswith("data:image/jpeg;base64,")
        for _, attributes in parsed.tags
        if "src" in attributes
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat\u202egnp.exe", "cat⟨U+202E⟩gnp.exe"),
        ("a\u2066b\u2069", "a⟨U+2066⟩b⟨U+2069⟩"),
        ("nul\0bell\a", "nul⟨U+0000⟩bell⟨U+0007⟩"),
        ("lone \ud800", "lone ⟨U+D800⟩"),
        ("two\nlines\u2028three", "two lines⟨U+2028⟩three"),
        ("קפה 👩\u200d🚀", "קפה 👩\u200d🚀"),
    ],
)
def test_hidden_characters_are_visible(text: str, shown: str, tmp_path: Path) -> None:
    """None changes how the rest of the page reads; joiners of ordinary scripts stay."""
    report = _report()
    report.add(Row("key", text=text), [])

    assert shown in _Page(_page(report, tmp_path)).text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    """No script, no network, and both colour schemes."""
    page = _page(_filled(list(range(50)), _report(thumbnail=lambda _: b"jpeg")), tmp_path)

    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"<script|<link|https?:|url\(|@import", page)


def test_the_page_is_accessible(tmp_path: Path) -> None:
    """It has a language and one main heading; tables have captions and headers, and pictures have descriptions."""
    page = _page(_filled(list(range(50)), _report(thumbnail=lambda _: b"jpeg")), tmp_path)

    tags = _Page(page).tags
    names = [tag for tag, _ in tags]
    assert ("html", {"lang": "en"}) in tags
    assert names.count("h1") == 1
    assert names.count("caption") == names.count("table")
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    charts = [attributes for tag, attributes in tags if tag == "svg" and "aria-hidden" not in attributes]
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert charts


def test_the_json_has_the_same_numbers(tmp_path: Path) -> None:
    """For programs; any text in it is valid JSON."""
    report = _filled(list(range(1, 31)), _report())
    report.add(Row("lone \ud800", text="\ud800"), [])
    report.write_json(tmp_path / "report.json")

    data = json.loads((tmp_path / "report.json").read_text())

    assert (data["rows_in"], data["kept"], data["dropped"]) == (31, 17, 14)
    assert data["rules"][0] == {
        "reason": "TOO_SMALL", "boundary": "smaller side under 200 goes", "first": 10, "all": 10, "only": 8,
    }  # fmt: skip
    assert sum(bar["kept"] + bar["dropped"] for bar in data["measures"]["width"]["bars"]) == 30


def test_an_empty_report_is_a_page(tmp_path: Path) -> None:
    """A run without rows has a report as well."""
    assert "0" in _Page(_page(_report(), tmp_path)).text
