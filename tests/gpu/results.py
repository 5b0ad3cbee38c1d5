"""What a step has found: tables, one a line of JSON, so that a step that dies keeps what it had."""

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
    """Rows that a step has found."""

    step: str
    title: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Results:
    """The file of a run that a step adds its tables to."""

    file: Path
    step: str
    has_figures: bool  # false if the times are those of a pretended GPU

    def measured(self, title: str, *rows: Row) -> None:
        """Adds times and rates, which are floats. Without a GPU they are left out."""
        self._add(title, rows if self.has_figures else [_without_figures(row) for row in rows])

    def proved(self, title: str, *rows: Row) -> None:
        """Adds what is also true of a pretended GPU."""
        self._add(title, rows)

    def _add(self, title: str, rows: Sequence[Row]) -> None:
        line = json.dumps(asdict(Table(self.step, title, list(map(dict, rows)))))
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line[:1500], flush=True)


def read_tables(file: Path) -> list[Table]:
    """Returns the tables of a run, in order. A last line that was cut off is left out."""
    tables = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            tables.append(Table(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return tables


def _without_figures(row: Row) -> Row:
    return {name: None if isinstance(value, float) else value for name, value in row.items()}
