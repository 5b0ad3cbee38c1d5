"""Verdicts over all rows: the order of rules, who counts, and the account."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve.curate import rules
from alignserve.curate.decisions import FAILED, Decisions
from alignserve.curate.rules import (
    AnyRule,
    DuplicateRule,
    FractionRule,
    FrequencyRule,
    NearDuplicateRule,
    RuleSet,
)


def row(key: str = "key", **columns: Any) -> dict[str, Any]:
    return {
        "key": key,
        "text": f"text of {key}",
        "image_phash": f"hash of {key}",
        "text_length": 100,
        "failure_reason": None,
        "partial_failure_reason": None,
        **columns,
    }


def decide(
    folder: Path, chosen: Sequence[AnyRule], rows: Sequence[dict[str, Any]], block: int = 2
) -> tuple[list[list[str] | None], Decisions]:
    """Returns the reasons of each row, `None` for a failed one."""
    ruleset = RuleSet(tuple(chosen))
    decisions = Decisions(ruleset, folder, len(rows))
    for start in range(0, len(rows), block):
        decisions.add(rows[start : start + block])
    counts = decisions.decide()
    assert counts.rows == len(rows)
    assert sum(counts.first_reasons.values()) == counts.dropped
    verdicts = [int(bits) for bits in decisions.flags[: len(rows)]]
    return [None if bits == FAILED else ruleset.reasons(bits) for bits in verdicts], decisions


def test_rows_are_counted_by_their_first_and_by_all_reasons(tmp_path: Path) -> None:
    """Reasons are in the order of the rules."""
    chosen = [rules.min_text_length(50), rules.max_score("nsfw", 0.5, "NSFW")]
    rows = [row(), row(text_length=1), row(text_length=1, nsfw=0.9), row(nsfw=0.9), row(nsfw=math.nan)]

    found, decisions = decide(tmp_path, chosen, rows)

    assert found == [[], ["TEXT_TOO_SHORT"], ["TEXT_TOO_SHORT", "NSFW"], ["NSFW"], []]
    assert decisions.counts.as_json(RuleSet(tuple(chosen))) == {
        "kept": 2,
        "dropped": 3,
        "failed": 0,
        "first_reasons": {"TEXT_TOO_SHORT": 2, "NSFW": 1},
        "all_reasons": {"TEXT_TOO_SHORT": 2, "NSFW": 2},
        "unjudged": {"NSFW": 3},
    }


def test_texts_are_counted_before_other_rules_drop_rows(tmp_path: Path) -> None:
    """Eleven equal texts go, although ten of them go for another reason too; failed rows do not count."""
    rows = [row(f"{n}", text="picture of", text_length=10) for n in range(10)]
    rows += [row("long", text="picture of")]
    rows += [row(f"x{n}", text="image for") for n in range(10)]
    rows += [row("failed", text="image for", failure_reason="IMAGE_UNREADABLE")]

    found, _ = decide(tmp_path, [rules.min_text_length(50), FrequencyRule(10)], rows)

    assert found[:10] == [["TEXT_TOO_SHORT", "TEXT_TOO_FREQUENT"]] * 10
    assert found[10] == ["TEXT_TOO_FREQUENT"]
    assert found[11:] == [[]] * 10 + [None]


def test_the_first_kept_row_of_duplicates_stays(tmp_path: Path) -> None:
    """A row that another rule drops is not the original of a duplicate."""
    same = {"image_phash": "h", "text": "t"}
    rows = [row("a", **same, text_length=1), row("b", **same), row("c"), row("d", **same), row("e", **same)]

    found, _ = decide(tmp_path, [DuplicateRule(), rules.min_text_length(50)], rows)

    assert found == [["TEXT_TOO_SHORT"], [], [], ["DUPLICATE"], ["DUPLICATE"]]


def test_pictures_without_a_hash_are_duplicates_of_equal_files_only(tmp_path: Path) -> None:
    """Flat pictures would all have one hash."""
    flat: dict[str, Any] = {"image_phash": None, "text": "t"}
    rows = [row("a", **flat, image_digest="1"), row("b", **flat, image_digest="2")]
    rows += [row("c", **flat, image_digest="1"), row("d", **flat)]

    found, decisions = decide(tmp_path, [DuplicateRule()], rows)

    assert found == [[], [], ["DUPLICATE"], []]
    assert decisions.counts.unjudged == {"DUPLICATE": 1}


def test_a_fraction_is_of_the_rows_that_have_a_value(tmp_path: Path) -> None:
    """Also of rows that other rules drop; rows without a value go, and duplicates look at what is left."""
    rows = [row(f"{n}", text="t", image_phash="h", similarity=n / 10) for n in range(10)]
    rows += [row("nan", similarity=math.nan), row("none", similarity=None), row("absent")]

    found, decisions = decide(tmp_path, [FractionRule("similarity", Fraction("0.3")), DuplicateRule()], rows)

    low = ["NOT_IN_TOP_SIMILARITY"]
    assert found == [low] * 7 + [[], ["DUPLICATE"], ["DUPLICATE"]] + [low] * 3
    assert decisions.counts.unjudged["NOT_IN_TOP_SIMILARITY"] == 3


def test_a_row_with_a_missing_score_fails_unless_another_rule_drops_it(tmp_path: Path) -> None:
    """Its similarity is unknown because its comparison failed."""
    rows = [row("a", partial_failure_reason="IMAGE_UNREADABLE")]
    rows += [row("b", partial_failure_reason="IMAGE_UNREADABLE", text_length=1), row("c", similarity=0.5)]

    found, decisions = decide(
        tmp_path,
        [
            rules.min_text_length(50),
            rules.min_cut("similarity", 0.1),
            FractionRule("similarity", Fraction(1)),
        ],
        rows,
    )

    assert found == [None, ["TEXT_TOO_SHORT"], []]
    assert (decisions.counts.kept, decisions.counts.dropped, decisions.counts.failed) == (1, 1, 1)


def test_verdicts_do_not_depend_on_shards(tmp_path: Path) -> None:
    """The same rows in blocks of other sizes."""
    chosen: list[AnyRule] = [
        FractionRule("similarity", Fraction("0.5")),
        FrequencyRule(2),
        DuplicateRule(),
    ]
    rows = [row(f"{n}", similarity=(n % 3) / 3, text=f"t{n % 7}", image_phash=f"h{n % 5}") for n in range(40)]

    first, _ = decide(tmp_path / "1", chosen, rows, block=1)
    second, _ = decide(tmp_path / "2", chosen, rows, block=40)

    assert first == second


def test_no_rules_keep_everything(tmp_path: Path) -> None:
    """Also of a source without rows."""
    chosen: list[AnyRule] = [FrequencyRule(1), DuplicateRule()]

    assert decide(tmp_path / "1", [], [row()])[0] == [[]]
    assert decide(tmp_path / "2", chosen, [])[0] == []


def write_embeddings(folder: Path, vectors: dict[str, list[float]]) -> Path:
    folder.mkdir()
    table = pa.table(
        {
            "key": list(vectors),
            "image_embedding": pa.array(list(vectors.values()), pa.list_(pa.float32(), 2)),
        }
    )
    pq.write_table(table, folder / "part-00000-00000.parquet")
    return folder


def test_near_duplicates_are_compared_with_kept_rows_only(tmp_path: Path) -> None:
    """A row that is dropped, or has no embedding, is not the original of any."""
    vectors = {"a": [1.0, 0.0], "b": [1.0, 0.01], "d": [1.0, 0.02], "e": [0.0, 1.0]}
    folder = write_embeddings(tmp_path / "vectors", vectors)
    rows = [row("a", text_length=1), row("b"), row("c"), row("d"), row("e")]

    found, decisions = decide(
        tmp_path / "work", [rules.min_text_length(50), NearDuplicateRule(folder, 0.99)], rows
    )

    assert found == [["TEXT_TOO_SHORT"], [], [], ["NEAR_DUPLICATE"], []]
    assert decisions.counts.unjudged == {"NEAR_DUPLICATE": 1}


def test_embeddings_of_another_source_are_refused(tmp_path: Path) -> None:
    """Their rows cannot be matched."""
    folder = write_embeddings(tmp_path / "vectors", {"other": [1.0, 0.0]})

    with pytest.raises(ValueError, match="embedding of 'other', which is not the next row"):
        decide(tmp_path / "work", [NearDuplicateRule(folder, 0.99)], [row("a")])
