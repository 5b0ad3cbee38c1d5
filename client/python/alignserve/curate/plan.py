"""What a curation is asked for, and what follows from it: its manifests and the columns of its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from alignserve.curate.columns import PICTURE_FIELDS, TEXT_FIELDS, similarity_column, tokens_column
from alignserve.curate.measuring import Measures
from alignserve.curate.parts import output_schema
from alignserve.curate.report import Report, Thumbnail
from alignserve.curate.rules import RuleSet
from alignserve.datasets.source import BrokenSourceError, Dataset, SourceFile


@dataclass(frozen=True, slots=True)
class Options:
    """How a curation is written.

    Attributes:
        kept_only: Write only the rows that are kept; otherwise dropped rows too.
        has_images: Write a column with the images, or with paths where the dataset has paths.
        rows_per_shard: Rows in one part; their measures are in memory at once.
    """

    kept_only: bool = False
    has_images: bool = True
    rows_per_shard: int = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """A curation of a dataset.

    Attributes:
        dataset: The pairs.
        rules: Which rows go.
        measures: How rows are measured.
        options: How the result is written.
        thumbnail: Makes small pictures for the report.
    """

    dataset: Dataset
    rules: RuleSet
    measures: Measures
    options: Options = field(default_factory=Options)
    thumbnail: Thumbnail | None = None

    @property
    def measured_names(self) -> list[str]:
        """Returns the columns of the output that are measured."""
        return [field.name for field in (*PICTURE_FIELDS, *TEXT_FIELDS, *self.measures.score_fields)]

    @property
    def schema(self) -> pa.Schema:
        """Returns the columns of the output, with the model in its metadata."""
        metadata: Mapping[str, str] = {}
        if self.model is not None:
            metadata = {
                "alignserve.model": self.model["id"],
                "alignserve.fingerprint": self.model["fingerprint"],
            }
        return output_schema(
            self.dataset.schema, self.measures.score_fields, metadata, has_images=self.options.has_images
        )

    @property
    def manifest(self) -> dict[str, Any]:
        """Returns what must be the same when the curation is resumed."""
        return {
            **self.measures_manifest,
            "job": "curate",
            "rules": self.rules.boundaries(),
            "output": {"kept_only": self.options.kept_only, "has_images": self.options.has_images},
            "columns": self.schema.names,
        }

    @property
    def model(self) -> dict[str, str] | None:
        """Returns the server's model and the columns that are named for it, or `None` without a server."""
        comparing = self.measures.comparing
        if comparing is None:
            return None
        return {
            "id": comparing.model_id,
            "fingerprint": comparing.fingerprint,
            "similarity": similarity_column(comparing.model_id),
            "tokens": tokens_column(comparing.model_id),
        }

    @property
    def measures_manifest(self) -> dict[str, Any]:
        """Returns what must be the same for measures to be used again."""
        measures = self.measures
        return {
            "job": "curate-measures",
            "model": self.model,
            "sources": [{"name": file.name, "digest": _digest(file)} for file in self.dataset.files],
            "options": {
                "rows_per_shard": self.options.rows_per_shard,
                "whitespace": measures.whitespace,
                "source_columns": [*measures.source_columns, *measures.source_texts],
                "scorers": {scorer.column: scorer.target for scorer in measures.scorers},
            },
        }

    def new_report(self) -> Report:
        """Returns a report without rows, with histograms of all numbers."""
        numbers = [field.name for field in self.schema if _is_number(field) and field.name != "id"]
        return Report(rules=self.rules.boundaries(), measures=numbers, thumbnail=self.thumbnail)


def _digest(file: SourceFile) -> str | None:
    try:
        return file.digest()
    except (OSError, BrokenSourceError):  # its rows will say so
        return None


def _is_number(field: pa.Field) -> bool:
    return bool(pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
