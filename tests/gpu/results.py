"""The results of steps: one table per line of JSON, so that a step that dies keeps its results so far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

Value: TypeAlias = str | int | float | bool | None
Row: TypeAlias = Mapping[str, Value]  # column → value, in the order of the columns


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of results from a step."""

    step: str
    title: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Results:
    """The results file of a run, to which steps add tables."""

    file: Path
    step: str
    has_figures: bool  # false on a simulated GPU

    def measured(self, title: str, *rows: Row) -> None:
        """Adds times and rates, which are floats. They are omitted without a GPU."""
        self._add(title, rows if self.has_figures else [_without_figures(row) for row in rows])

    def proved(self, title: str, *rows: Row) -> None:
        """Adds results that a simulated GPU proves too."""
        self._add(title, rows)

    def _add(self, title: str, rows: Sequence[Row]) -> None:
        line = json.dumps(asdict(Table(self.step, title, list(map(dict, rows)))))
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line[:1500], flush=True)


def read_tables(file: Path) -> list[Table]:
    """Returns the tables of a run in order, without a truncated last line."""
    tables = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            tables.append(Table(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return tables


def _without_figures(row: Row) -> Row:
    return {name: None if isinstance(value, float) else value for name, value in row.items()}
