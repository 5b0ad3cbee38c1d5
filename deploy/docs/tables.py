"""Writes the tables of the pages that are generated: from the code, and from measured.json.

python -m deploy.docs.tables            write them
python -m deploy.docs.tables --check    exit 1 if one differs

A page names the table, and its rows if it does not want all of them:

    <!-- table: settings listen workers -->
    (written here)
    <!-- end -->
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from alignserve_server.errors import error_kinds
from alignserve_server.http.dialects import FIELD_TABLES
from alignserve_server.observability.events import EVENTS
from alignserve_server.settings import GROUPS, Settings

from deploy.docs.markdown import table
from deploy.docs.pages import ROOT, pages
from deploy.docs.registered import levels, metrics
from server.recipes.mini import card

_BLOCK = re.compile(r"(^<!-- table: ([^\n]*) -->\n).*?(^<!-- end -->$)", re.MULTILINE | re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    is_checked = parser.parse_args().check
    stale = [(path, text) for path in pages() if (text := written(path)) != path.read_text()]
    for path, text in stale:
        print(f"{path.relative_to(ROOT)}: {'differs from the code' if is_checked else 'written'}")
        if not is_checked:
            path.write_text(text)
    return int(is_checked and bool(stale))


def written(page: Path) -> str:
    """Returns a page with its tables generated from the code.

    Raises:
        KeyError: The page names a table or row that does not exist.
    """

    def fill(block: re.Match[str]) -> str:
        name, *rows = block[2].split()
        return f"{block[1]}\n{TABLES[name](rows)}\n{block[3]}"

    return _BLOCK.sub(fill, page.read_text())


def _settings(names: Sequence[str]) -> str:
    if names:
        return table(("setting", "default", "meaning"), [_setting(name) for name in names])
    return "\n".join(
        f"## {title}\n\n{table(('setting', 'default', 'meaning'), [_setting(name) for name in group])}"
        for title, group in _groups()
    )


def _groups() -> Iterator[tuple[str, list[str]]]:
    names = list(Settings.model_fields)
    starts = [*map(names.index, GROUPS), len(names)]
    for title, start, end in zip(GROUPS.values(), starts, starts[1:], strict=False):
        yield title, names[start:end]


def _setting(name: str) -> tuple[str, str, str]:
    field = Settings.model_fields[name]
    return f"`{name}`", _default(name, field.default), field.description or ""


def _default(name: str, value: object) -> str:
    if value is None:
        return "unset"
    text = f"`{str(value).lower() if isinstance(value, bool) else value}`"
    if not name.endswith("_bytes") or not isinstance(value, int):
        return text
    unit, shift = ("MiB", 20) if value >= 1 << 20 else ("KiB", 10)
    return f"{text} ({value >> shift} {unit})" if value else text


def _metrics(names: Sequence[str]) -> str:
    found = metrics()
    if names:
        return table(("metric", "meaning"), [(f"`{name}`", found[name].text) for name in names])
    return table(
        ("metric", "type", "labels", "meaning"),
        [
            (f"`{name}`", metric.kind, " ".join(f"`{label}`" for label in metric.labels), metric.text)
            for name, metric in found.items()
        ],
    )


def _events(_: Sequence[str]) -> str:
    found = levels()
    if found.keys() != EVENTS.keys():
        raise KeyError(
            f"events without a description, or descriptions of none: {found.keys() ^ EVENTS.keys()}"
        )
    return table(
        ("event", "level", "when"), [(f"`{event}`", found[event], text) for event, text in EVENTS.items()]
    )


def _errors(_: Sequence[str]) -> str:
    return table(
        ("code", "reason", "meaning", "worth a retry"),
        [
            (kind.code, f"`{kind.reason}`", _first_sentence(kind), "yes" if kind.is_retryable else "no")
            for kind in error_kinds()
        ],
    )


def _fields(dialect: str, _: Sequence[str]) -> str:
    return table(
        ("field", "treatment", "meaning"),
        [(f"`{field.name}`", field.treatment, field.meaning) for field in FIELD_TABLES[dialect]],
    )


def _measured(name: str, _: Sequence[str]) -> str:
    return card.TABLES[name](card.read())


def _first_sentence(kind: type) -> str:
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split())


TABLES: dict[str, Callable[[Sequence[str]], str]] = {
    "settings": _settings,
    "metrics": _metrics,
    "events": _events,
    "errors": _errors,
    **{f"fields-{dialect}": partial(_fields, dialect) for dialect in FIELD_TABLES},
    **{name: partial(_measured, name) for name in card.TABLES},
}


if __name__ == "__main__":
    raise SystemExit(main())
