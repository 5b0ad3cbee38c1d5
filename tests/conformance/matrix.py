"""The matrix: the outcome of each case in each column, in Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["passed", "failed", "skipped"]
MARKS: Mapping[Verdict, str] = {"passed": "✓", "failed": "✗", "skipped": "-"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on one case or check, and why."""

    name: str
    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Column:
    """A language, or a client that is used unmodified.

    Attributes:
        key: Its name on the command line.
        name: Its heading.
        versions: What ran.
        skipped: Why the whole column was skipped; empty if it was not.
        outcomes: One for each case.
    """

    key: str
    name: str
    versions: Mapping[str, str] = field(default_factory=dict)
    skipped: str = ""
    outcomes: list[Outcome] = field(default_factory=list)

    def count(self, verdict: Verdict) -> int:
        """Returns how many outcomes have this verdict."""
        return sum(outcome.verdict == verdict for outcome in self.outcomes)


def case_table(columns: Sequence[Column], titles: Mapping[str, str]) -> str:
    """Returns cases by language, in Markdown."""
    head = ["case", *(column.name for column in columns)]
    found = [{outcome.name: outcome.verdict for outcome in column.outcomes} for column in columns]
    rows = [
        [_cell(title), *(MARKS[verdicts.get(name, "skipped")] for verdicts in found)]
        for name, title in titles.items()
    ]
    totals = ["**passed**", *(f"**{column.count('passed')}/{len(titles)}**" for column in columns)]
    return _table(head, [*rows, totals])


def check_table(columns: Sequence[Column]) -> str:
    """Returns the clients in Markdown, each with checks of its own."""
    rows = []
    for column in columns:
        if column.skipped:
            rows.append([column.name, "", f"{MARKS['skipped']} {_cell(column.skipped)}"])
            continue
        checks = [f"{MARKS[outcome.verdict]} {_cell(outcome.name)}" for outcome in column.outcomes]
        rows.append([column.name, _versions(column), "<br>".join(checks)])
    return _table(["client", "versions", "checks"], rows)


def versions_table(columns: Sequence[Column]) -> str:
    """Returns the versions of each column in Markdown, and why one was skipped."""
    rows = [
        [column.name, _cell(f"skipped: {column.skipped}" if column.skipped else _versions(column))]
        for column in columns
    ]
    return _table(["language", "versions"], rows)


def failures(columns: Sequence[Column]) -> list[str]:
    """Returns a paragraph for each failure."""
    return [
        f"{column.name}: {outcome.name}: {outcome.detail}"
        for column in columns
        for outcome in column.outcomes
        if outcome.verdict == "failed"
    ]


def document(
    languages: Sequence[Column],
    clients: Sequence[Column],
    titles: Mapping[str, str],
    facts: Mapping[str, str],
) -> str:
    """Returns the page with both matrices."""
    parts = ["# Results of the conformance tests", "Written by `make conformance`; do not edit."]
    parts.append(_table(["", ""], [[name, _cell(value)] for name, value in facts.items()]))
    if languages:
        parts += ["## Languages", case_table(languages, titles), versions_table(languages)]
    if clients:
        parts += ["## Works unmodified", check_table(clients)]
    if found := failures([*languages, *clients]):
        parts += ["## Failures", *(f"```text\n{each}\n```" for each in found)]
    return "\n\n".join(parts) + "\n"


def as_json(languages: Sequence[Column], clients: Sequence[Column], facts: Mapping[str, str]) -> str:
    """Returns everything as JSON."""
    values: dict[str, Any] = {
        "facts": dict(facts),
        "languages": [asdict(column) for column in languages],
        "clients": [asdict(column) for column in clients],
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _versions(column: Column) -> str:
    return ", ".join(f"{name} {version}" for name, version in column.versions.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
