"""The summary of a run, in Markdown, to paste into a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.gpu.results import Row, Table, Value
from tests.gpu.runner import Outcome
from tests.load.report import number, table

_PRETENDED = (
    "**No GPU was used.** CUDA was simulated on a CPU: this run shows that the check works and that graphs "
    "and lanes give the right vectors. It measures nothing, so figures are omitted (-)."
)
_NOTHING = "-"


def summary(
    heading: Mapping[str, str], outcomes: Sequence[Outcome], tables: Sequence[Table], *, is_pretended: bool
) -> str:
    """Returns the document: machine and command, the verdict of each step, and all tables."""
    facts = table(("", ""), [(f"**{name}**", value) for name, value in heading.items()])
    steps = table(
        ("step", "verdict", "seconds", ""),
        [
            (one.step, one.verdict, _NOTHING if one.seconds is None else f"{one.seconds:.0f}", one.reason)
            for one in outcomes
        ],
    )
    parts = ["# GPU check", *([_PRETENDED] if is_pretended else []), facts, "## Steps", steps]
    for title, rows in _joined(tables).items():
        parts += [f"## {title}", _rows(rows)]
    return "\n\n".join(parts) + "\n"


def _joined(tables: Sequence[Table]) -> dict[str, list[Row]]:
    """Returns the rows by step and title, since a step may add one row at a time."""
    rows: dict[str, list[Row]] = {}
    for one in tables:
        rows.setdefault(f"{one.title} ({one.step})", []).extend(one.rows)
    return rows


def _rows(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return table(columns, [[_written(row.get(name)) for name in columns] for row in rows])


def _written(value: Value) -> str:
    if value is None:
        return _NOTHING
    if isinstance(value, float):
        return number(value)
    return str(value).replace("|", "\\|").replace("\n", " ")
