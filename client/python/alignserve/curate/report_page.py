"""The HTML page of a curation report: one file, without scripts, for light and dark screens and for screen readers.

Keys, texts and names come from untrusted data. All are escaped; characters that change how the text around them is
shown, such as bidirectional overrides, are written as their code point.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_WIDTH, _HEIGHT = 640, 120  # of a histogram
# Controls, format characters such as bidirectional overrides, surrogates, private use, separators of lines. A zero
# width joiner and non-joiner are part of ordinary text in several scripts, and of emoji.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_SHOWN = frozenset({"\u200c", "\u200d"})

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --soft: #5a5a5a; --line: #d0d0d0;
  --kept: #1f6fb2; --dropped: #c2691c; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --back: #16181b; --soft: #a8a8a8; --line: #3c4045;
  --kept: #6db3ee; --dropped: #f0a25c; } }
body { margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; }
caption { text-align: left; color: var(--soft); }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; max-width: 40rem; height: auto; }
.kept { fill: var(--kept); } .dropped { fill: var(--dropped); }
.soft { color: var(--soft); }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .3em; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; padding: 0;
  list-style: none; }
.examples li { border: 1px solid var(--line); padding: .6rem; overflow-wrap: anywhere; }
.examples img { display: block; max-width: 100%; height: auto; margin-bottom: .4rem; }
.scroll { overflow-x: auto; }
summary { cursor: pointer; }
"""


def page(title: str, data: Mapping[str, Any]) -> str:
    """Returns the page of a report; `data` is `Report.data(thumbnails=True)`."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        # Even if a text escaped its place, the page could load and run nothing.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{shown(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{shown(title)}</h1>",
        *_overview(data),
        *_rules(data["rules"]),
        *_failures(data["failed"]),
        *_measures(data["measures"]),
        *_examples(data["examples"]),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def shown(text: str) -> str:
    """Returns text as HTML in which every character is visible and acts on nothing around it."""
    return html.escape("".join(map(_visible, text)))


def _visible(character: str) -> str:
    if character in _SHOWN or unicodedata.category(character) not in _HIDDEN:
        return character
    if character in "\t\n\r":
        return " "
    return f"⟨U+{ord(character):04X}⟩"


def _overview(data: Mapping[str, Any]) -> Iterable[str]:
    rows_in, failed = data["rows_in"], sum(data["failed"].values())
    rows = [(name, data[name]) for name in ("kept", "dropped")] + [("failed", failed)]
    yield '<h2>Rows</h2><div class="scroll"><table><caption>Each row is in one of these lines</caption>'
    yield _header(("", False), ("rows", True), ("share", True))
    for name, count in [*rows, ("all", rows_in)]:
        yield _row(name, f"{count:,}", _share(count, rows_in))
    yield "</table></div>"


def _rules(rules: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield '<h2>Removed by each rule</h2><div class="scroll"><table>'
    yield (
        "<caption>By first reason: each dropped row counts once. By all: each of its reasons counts. Only: the rows "
        "that would be kept without this rule</caption>"
    )
    yield _header(("rule", False), ("first", True), ("all", True), ("only", True), ("which rows go", False))
    for rule in rules:
        counts = (f"{rule[name]:,}" for name in ("first", "all", "only"))
        yield _row(rule["reason"], *counts, note=rule["boundary"] or "")
    yield "</table></div>"


def _failures(failed: Mapping[str, int]) -> Iterable[str]:
    if failed:
        yield '<h2>Failed rows</h2><div class="scroll"><table><caption>Rows that could not be judged</caption>'
        yield _header(("reason", False), ("rows", True))
        yield from (_row(name, f"{count:,}") for name, count in failed.items())
        yield "</table></div>"


def _measures(measures: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    if measures:
        yield "<h2>Measures</h2>"
        yield (
            '<p><svg class="swatch" viewBox="0 0 1 1" aria-hidden="true"><rect class="kept" width="1" height="1"/></svg>'
            'kept rows <svg class="swatch" viewBox="0 0 1 1" aria-hidden="true">'
            '<rect class="dropped" width="1" height="1"/></svg>dropped rows, on top of them</p>'
        )
    for name, measure in measures.items():
        yield f"<h3>{shown(name)}</h3>"
        yield _chart(name, measure)
        yield '<details><summary>As a table</summary><div class="scroll"><table>'
        yield f"<caption>Rows by {shown(name)}</caption>"
        yield _header(("from", True), ("to", True), ("kept", True), ("dropped", True))
        for bar in measure["bars"]:
            numbers = (_figure(bar["low"]), _figure(bar["high"]), f"{bar['kept']:,}", f"{bar['dropped']:,}")
            yield "<tr>" + "".join(f'<td class="number">{number}</td>' for number in numbers) + "</tr>"
        yield "</table></div></details>"


def _chart(name: str, measure: Mapping[str, Any]) -> str:
    bars = measure["bars"]
    if not bars:
        return f'<p class="soft">No row has a value; {measure["missing"]:,} are without one.</p>'
    highest = max(bar["kept"] + bar["dropped"] for bar in bars)
    width = _WIDTH / len(bars)
    shapes = []
    for number, bar in enumerate(bars):
        kept, dropped = (_HEIGHT * bar[kind] / highest for kind in ("kept", "dropped"))
        for kind, top, height in (("kept", kept, kept), ("dropped", kept + dropped, dropped)):
            if height:
                shapes.append(
                    f'<rect class="{kind}" x="{number * width:.2f}" y="{_HEIGHT - top:.2f}" '
                    f'width="{max(width - 1, 1):.2f}" height="{height:.2f}"/>'
                )
    middle = measure["percentiles"]["50"]
    label = (
        f"{name} from {_figure(bars[0]['low'])} to {_figure(bars[-1]['high'])}, median {_figure(middle)}; "
        f"{measure['kept']:,} kept rows and {measure['dropped']:,} dropped rows have a value"
    )
    missing = f"; {measure['missing']:,} rows have none" if measure["missing"] else ""
    return (
        f'<svg role="img" aria-label="{shown(label)}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'preserveAspectRatio="none">{"".join(shapes)}</svg><p class="soft">{shown(label + missing)}.</p>'
    )


def _examples(examples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterable[str]:
    if examples:
        yield "<h2>Examples</h2>"
    for reason, found in examples.items():
        yield f'<h3>{shown(reason)}</h3><ul class="examples">'
        yield from map(_example, found)
        yield "</ul>"


def _example(example: Mapping[str, Any]) -> str:
    parts = []
    key = shown(example["key"])
    if example["thumbnail"]:
        source = f"data:image/jpeg;base64,{html.escape(example['thumbnail'])}"
        parts.append(f'<img alt="picture of {key}" src="{source}">')
    if example["text"] is not None:
        parts.append(f'<p dir="auto">{shown(example["text"])}</p>')
    parts.append(f'<p class="soft">key <bdi>{key}</bdi>')
    if len(example["reasons"]) > 1:
        parts.append(f"<br>all reasons: {shown(', '.join(example['reasons']))}")
    for name, value in example["values"].items():
        parts.append(f"<br>{shown(name)} {_figure(value)}")
    return f"<li>{''.join(parts)}</p></li>"


def _header(*columns: tuple[str, bool]) -> str:
    cells = (
        f'<th scope="col"{" class=number" if is_number else ""}>{shown(name)}</th>' for name, is_number in columns
    )
    return f"<tr>{''.join(cells)}</tr>"


def _row(name: str, *numbers: str, note: str | None = None) -> str:
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    last = "" if note is None else f"<td>{shown(note)}</td>"
    return f'<tr><th scope="row">{shown(name)}</th>{cells}{last}</tr>'


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "–"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,.4g}"
