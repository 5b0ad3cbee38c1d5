"""Whole runs: accounts, resume, and what becomes of rows that cannot be judged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve import Client
from alignserve.curate import rules
from alignserve.curate.measuring import Measures
from alignserve.curate.pictures import Picture
from alignserve.curate.plan import Options, Plan
from alignserve.curate.rules import DuplicateRule, FractionRule, FrequencyRule, NearDuplicateRule, RuleSet
from alignserve.curate.run import Here, OnProgress, Outcome, curate
from alignserve.curate.scorers import Scorer
from alignserve.curate.similarity import Comparing
from alignserve.datasets.output import OutputDiffersError, OutputNotEmptyError
from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.source import BrokenSourceError, Dataset
from alignserve.errors import AlignserveError
from alignserve.testing import FakeServer


@dataclass
class Rows:
    """A source file in memory."""

    name: str
    content: list[Row]
    broken: bool = False
    version: str = "1"
    reads: int = field(default=0, compare=False)

    def digest(self) -> str:
        return self.version

    def rows(self, start: int = 0) -> Iterator[tuple[Row, int]]:
        for position, row in enumerate(self.content[start:], start + 1):
            self.reads += 1
            yield row, position
        if self.broken:
            raise BrokenSourceError(f"{self.name} ends at row {len(self.content)}")


class Texts:
    """Every text is English; "void" has no noun."""

    def detect(self, text: str) -> tuple[str, float]:
        return "en", 0.75

    def has_noun(self, text: str) -> bool:
        return text != "void"

    def word_count(self, text: str) -> int:
        return len(text.split())


def pictures(images: Iterable[bytes | Path]) -> Iterator[Picture | RowFailure]:
    """Pictures are as large as their bytes are many, and equal bytes have equal hashes."""
    for image in images:
        assert isinstance(image, bytes)
        if image.startswith(b"bad"):
            yield RowFailure("IMAGE_UNREADABLE", "it is bad")
        else:
            digest = sha256(image).hexdigest()
            yield Picture(100 * len(image), 200, len(image), "JPEG", digest[:16], digest)


def rows(count: int, first: int = 0) -> list[Row]:
    return [
        Row(f"key {n}", f"image {n}".encode(), f" text  {n} ", {"url": f"http://{n}"})
        for n in range(first, first + count)
    ]


def plan_of(
    files: Sequence[Rows],
    chosen: Sequence[Any] = (),
    *,
    options: Options | None = None,
    **measures: Any,
) -> Plan:
    schema = pa.schema([("url", pa.string())])
    return Plan(
        Dataset(files, schema),
        RuleSet(tuple(chosen)),
        Measures(pictures, Texts(), **measures),
        options or Options(rows_per_shard=3),
    )


def run(
    folder: Path, plan: Plan, *, resume: bool = False, on_progress: OnProgress = lambda *_: None
) -> Outcome:
    return curate(plan, folder, resume=resume, workers=Here(plan, on_progress))


def read(folder: Path) -> list[dict[str, Any]]:
    parts = sorted(folder.glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def balanced(outcome: Outcome) -> tuple[int, int, int]:
    """Returns kept, dropped and failed rows of a balanced account."""
    counts, ledger = outcome.counts, outcome.ledger
    assert ledger.rows_in == counts["kept"] + counts["dropped"] + ledger.failed.total()
    return counts["kept"], counts["dropped"], counts["failed"]


def test_pairs_come_out_with_columns_verdict_and_reasons(tmp_path: Path) -> None:
    """In the order of the source, with COYO's columns first."""
    files = [Rows("a", rows(4)), Rows("b", [Row("void", b"image", "void", {"url": "u"})])]

    outcome = run(tmp_path, plan_of(files, [rules.has_noun()], whitespace="collapsed"))

    found = read(tmp_path)
    assert balanced(outcome) == (4, 1, 0)
    assert [row["key"] for row in found] == ["key 0", "key 1", "key 2", "key 3", "void"]
    assert [row["id"] for row in found] == [0, 1, 2, 3, 1 << 33]
    assert found[1] == {
        "id": 1,
        "key": "key 1",
        "image": {"bytes": b"image 1", "path": None},
        "text": "text 1",
        "url": "http://1",
        "width": 700,
        "height": 200,
        "image_phash": sha256(b"image 1").hexdigest()[:16],
        "image_digest": sha256(b"image 1").hexdigest(),
        "bytes": 7,
        "format": "JPEG",
        "aspect_ratio": 3.5,
        "min_side": 200,
        "text_length": 6,
        "word_count": 2,
        "language": "en",
        "language_confidence": 0.75,
        "has_noun": True,
        "verdict": "kept",
        "reasons": [],
    }
    assert (found[4]["verdict"], found[4]["reasons"]) == ("dropped", ["NO_NOUN"])
    assert not (tmp_path / "work").exists()
    assert json.loads((tmp_path / "manifest.json").read_text())["curation"] == outcome.counts
    assert json.loads((tmp_path / "report.json").read_text())["dropped"] == 1
    assert "NO_NOUN" in (tmp_path / "report.html").read_text()


def test_rows_that_cannot_be_read_are_failed_rows(tmp_path: Path) -> None:
    """They are neither kept nor dropped, and listed."""
    content = [
        *rows(2),
        Row("bad", b"bad image", "text"),
        Row("torn", failure=RowFailure("TORN", "torn row")),
    ]

    outcome = run(tmp_path, plan_of([Rows("a", content)], [rules.min_side(1000)]))

    assert balanced(outcome) == (0, 2, 2)
    assert outcome.summary() == "4 rows in = 0 kept + 2 dropped + 2 failed (1 IMAGE_UNREADABLE, 1 TORN)"
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"]) for line in failures] == [
        ("bad", "IMAGE_UNREADABLE"),
        ("torn", "TORN"),
    ]
    assert not outcome.ledger.is_success


def test_only_kept_rows_can_be_written(tmp_path: Path) -> None:
    """The account is the same; a shard without kept rows has no file."""
    content = [*[Row(f"v{n}", b"x", "void") for n in range(3)], *rows(2)]

    outcome = run(
        tmp_path,
        plan_of(
            [Rows("a", content)],
            [rules.has_noun()],
            options=Options(kept_only=True, has_images=False, rows_per_shard=3),
        ),
    )

    assert balanced(outcome) == (2, 3, 0)
    assert [row["key"] for row in read(tmp_path)] == ["key 0", "key 1"]
    assert "image" not in read(tmp_path)[0]
    assert len(list(tmp_path.glob("part-*"))) == 1


def test_counts_go_over_all_shards_and_files(tmp_path: Path) -> None:
    """A frequent text, duplicates and a fraction in several shards of several files."""
    same = [Row(f"same {n}", b"same image", "same text") for n in range(5)]
    often = [Row(f"often {n}", f"{n}".encode(), "often") for n in range(11)]
    files = [Rows("a", [*often[:6], *same[:2]]), Rows("b", [*same[2:], *often[6:], *rows(3)])]

    outcome = run(tmp_path, plan_of(files, [FrequencyRule(10), DuplicateRule()]))

    assert balanced(outcome) == (4, 15, 0)
    assert outcome.counts["first_reasons"] == {"TEXT_TOO_FREQUENT": 11, "DUPLICATE": 4}
    assert [row["key"] for row in read(tmp_path) if row["verdict"] == "kept"] == [
        "same 0",
        "key 0",
        "key 1",
        "key 2",
    ]


def test_a_broken_source_is_named_and_its_rows_count(tmp_path: Path) -> None:
    """Rows before the break are judged; the run is not a success."""
    outcome = run(tmp_path, plan_of([Rows("a", rows(4), broken=True), Rows("b", rows(2, 4))]))

    assert balanced(outcome) == (6, 0, 0)
    assert outcome.ledger.broken == ["a ends at row 4"]
    assert not outcome.ledger.is_success


def test_a_source_without_rows_gives_an_empty_account(tmp_path: Path) -> None:
    """With all rules about all rows."""
    chosen = [FrequencyRule(1), FractionRule("bytes", Fraction(1)), DuplicateRule()]

    assert balanced(run(tmp_path, plan_of([Rows("a", [])], chosen))) == (0, 0, 0)
    assert balanced(run(tmp_path / "b", plan_of([], chosen))) == (0, 0, 0)


class KilledError(Exception):
    """The process has died."""


@pytest.mark.parametrize("after", range(8))
def test_a_killed_run_resumes_without_losing_or_repeating_rows(tmp_path: Path, after: int) -> None:
    """Killed after any shard of any pass, then resumed: as if it had never been killed."""
    same = [Row("same 3", b"image 3", " text  3 "), Row("same 4", b"image 4", " text  4 ")]
    files = [Rows("a", rows(5)), Rows("b", [*same, Row("bad", b"bad", "text")]), Rows("c", [])]
    chosen = [FractionRule("bytes", Fraction("0.9")), DuplicateRule(), FrequencyRule(2)]
    verdicts = {
        **{f"key {number}": [] for number in range(4)},
        "key 4": ["NOT_IN_TOP_BYTES"],
        "same 3": ["DUPLICATE"],
        "same 4": [],
    }
    steps = iter(range(after))

    def die(stage: str, count: int) -> None:
        if next(steps, None) is None:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path, plan_of(files, chosen), on_progress=die)
    outcome = run(tmp_path, plan_of(files, chosen), resume=True)

    assert balanced(outcome) == (5, 2, 1)
    assert [(row["key"], row["reasons"]) for row in read(tmp_path)] == list(verdicts.items())
    assert json.loads((tmp_path / "report.json").read_text())["rows_in"] == 8
    assert (tmp_path / "failures.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("stage", ["measured", "compared", "written"])
@pytest.mark.parametrize("rows_per_shard", [3, 100])
def test_near_duplicates_are_the_same_after_a_kill(tmp_path: Path, stage: str, rows_per_shard: int) -> None:
    """In any pass, and whatever the size of the shards."""
    files = [Rows("a", rows(8)), Rows("b", [Row("bad", b"bad", "text"), *rows(8, first=8)])]
    vectors = np.random.default_rng(0).normal(size=(6, 8))[np.arange(17) % 6]
    table = pa.table(
        {"key": [row.key for file in files for row in file.content], "image_embedding": list(vectors)}
    )
    (tmp_path / "vectors").mkdir()
    pq.write_table(table, tmp_path / "vectors/part-00000-00000.parquet")
    plan = plan_of(
        files, [NearDuplicateRule(tmp_path / "vectors", 0.99)], options=Options(rows_per_shard=rows_per_shard)
    )

    def die(at: str, count: int) -> None:
        if at == stage:
            raise KilledError

    with pytest.raises(KilledError):
        curate(plan, tmp_path / "to", resume=False, workers=Here(plan, die), on_progress=die)
    outcome = curate(plan, tmp_path / "to", resume=True)

    assert balanced(outcome) == (6, 10, 1)
    assert [row["key"] for row in read(tmp_path / "to") if row["verdict"] == "kept"] == [
        f"key {number}" for number in range(6)
    ]


def test_rows_are_not_measured_again_by_a_resumed_run(tmp_path: Path) -> None:
    """Only those behind the last whole shard; a complete run reads nothing."""
    files = [Rows("a", rows(9))]
    measured = []

    def die(stage: str, count: int) -> None:
        measured.append(stage)
        if len(measured) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path, plan_of(files), on_progress=die)
    stages = []
    run(tmp_path, plan_of(files), resume=True, on_progress=lambda stage, count: stages.append(stage))
    reads = files[0].reads
    run(tmp_path, plan_of(files), resume=True)

    assert stages == ["measured", *["written"] * 3]
    assert files[0].reads == reads


def test_a_missing_part_is_written_again(tmp_path: Path) -> None:
    """And a damaged one."""
    files = [Rows("a", rows(8))]
    run(tmp_path, plan_of(files))
    before, report = read(tmp_path), (tmp_path / "report.json").read_text()
    parts = sorted(tmp_path.glob("part-*"))
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"x")

    outcome = run(tmp_path, plan_of(files), resume=True)

    assert balanced(outcome) == (8, 0, 0)
    assert read(tmp_path) == before
    assert (tmp_path / "report.json").read_text() == report


def test_other_rules_and_changed_sources_are_refused(tmp_path: Path) -> None:
    """A resumed run asks for the same; without resume, a folder with content is refused."""
    run(tmp_path, plan_of([Rows("a", rows(2))], [rules.min_side(10)]))

    with pytest.raises(OutputDiffersError, match="TOO_SMALL"):
        run(tmp_path, plan_of([Rows("a", rows(2))], [rules.min_side(11)]), resume=True)
    with pytest.raises(OutputDiffersError, match="source a has changed"):
        run(tmp_path, plan_of([Rows("a", rows(2), version="2")], [rules.min_side(10)]), resume=True)
    with pytest.raises(OutputNotEmptyError):
        run(tmp_path, plan_of([Rows("a", rows(2))], [rules.min_side(10)]))


def test_a_source_that_changes_between_the_passes_is_refused(tmp_path: Path) -> None:
    """Verdicts would go to other rows."""
    files = [Rows("a", rows(4))]

    def change(stage: str, count: int) -> None:
        files[0].content = rows(4, 1)

    with pytest.raises(OutputDiffersError, match="has other rows than when it was measured"):
        run(tmp_path, plan_of(files), on_progress=change)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(embedding_dimension=8) as fake:
        yield fake


def test_similarities_are_the_servers(tmp_path: Path, server: FakeServer) -> None:
    """In a column that is named for its model; a fraction of them stays."""
    with Client(server.target) as client:
        chosen = [FractionRule("fake_similarity", Fraction("0.3"))]
        outcome = run(tmp_path, plan_of([Rows("a", rows(10))], chosen, comparing=Comparing(client)))
        expected = [client.compare(f"image {n}".encode(), f" text  {n} ").similarity for n in range(10)]

    found = read(tmp_path)
    assert [row["fake_similarity"] for row in found] == pytest.approx(expected)
    assert [row["num_tokens_fake"] for row in found] == [4] * 10
    assert balanced(outcome) == (3, 7, 0)
    best = sorted(range(10), key=lambda n: -expected[n])[:3]
    assert [n for n, row in enumerate(found) if row["verdict"] == "kept"] == sorted(best)
    assert pq.read_schema(next(tmp_path.glob("part-*"))).metadata[b"alignserve.fingerprint"] == b"fake-8"


def test_a_pair_that_the_server_refuses_fails_unless_it_is_dropped(
    tmp_path: Path, server: FakeServer
) -> None:
    """Its image cannot be compared; a row that goes anyway needs no similarity."""
    server.fail_input(b"image 1")
    server.fail_input(b"image")
    content = [*rows(3), Row("void", b"image", "void")]
    with Client(server.target) as client:
        outcome = run(
            tmp_path, plan_of([Rows("a", content)], [rules.has_noun()], comparing=Comparing(client))
        )

    assert balanced(outcome) == (2, 1, 1)
    assert outcome.ledger.failed == {"IMAGE_UNREADABLE": 1}


def test_a_server_that_goes_away_ends_the_run_and_fails_no_row(tmp_path: Path, server: FakeServer) -> None:
    """A resumed run does the rest."""
    with Client(server.target) as client:
        comparing = Comparing(client)
        server.break_stream(1, grpc.StatusCode.PERMISSION_DENIED, "KEY_REVOKED")
        with pytest.raises(AlignserveError):
            run(tmp_path, plan_of([Rows("a", rows(5))], comparing=comparing))

        outcome = run(tmp_path, plan_of([Rows("a", rows(5))], comparing=comparing), resume=True)

    assert balanced(outcome) == (5, 0, 0)


def test_scores_of_plug_ins_and_of_the_source_are_judged(tmp_path: Path) -> None:
    """A plug-in replaces the source's column; pairs that it fails on are failed rows."""

    def score(images: list[bytes], texts: list[str | None]) -> list[float]:
        if b"image 2" in images:
            raise RuntimeError("no score")
        return [0.9 if image == b"image 1" else 0.1 for image in images]

    content = [
        Row(f"key {n}", f"image {n}".encode(), "text", {"nsfw": n == 0, "watermark": 1.0 * (n == 3)})
        for n in range(4)
    ]
    schema = pa.schema([("nsfw", pa.float64()), ("watermark", pa.float64())])
    chosen = RuleSet((rules.max_score("nsfw", 0.5, "NSFW"), rules.max_cut("watermark", 0.8)))
    measures = Measures(
        pictures, Texts(), source_columns=("watermark",), scorers=[Scorer("nsfw", "mine:score", score)]
    )

    outcome = run(tmp_path, Plan(Dataset([Rows("a", content)], schema), chosen, measures))

    assert balanced(outcome) == (1, 2, 1)
    assert {row["key"]: (row["nsfw"], row["reasons"]) for row in read(tmp_path)} == {
        "key 0": (0.1, []),
        "key 1": (0.9, ["NSFW"]),
        "key 3": (0.1, ["MAX_WATERMARK"]),
    }


def test_names_of_laions_columns_are_upper_case(tmp_path: Path) -> None:
    """They are found, and kept as they are."""
    content = [
        Row(f"key {n}", None, "text", {"URL": f"http://{n // 2}", "WIDTH": 300, "HEIGHT": 900 + n})
        for n in range(4)
    ]
    schema = pa.schema([("URL", pa.string()), ("WIDTH", pa.int64()), ("HEIGHT", pa.int64())])
    chosen = RuleSet((rules.max_aspect_ratio(3.0), DuplicateRule(("url", "text"))))
    measures = Measures.for_rules(chosen, schema, pictures, Texts())

    outcome = run(tmp_path, Plan(Dataset([Rows("a", content)], schema), chosen, measures))

    assert balanced(outcome) == (1, 3, 0)
    assert outcome.counts["not_applied"] == {}
    assert read(tmp_path)[1]["URL"] == "http://0"


def test_a_rule_without_its_column_is_not_applied(tmp_path: Path) -> None:
    """It keeps every row, and is listed; a cut without its column is refused."""
    chosen = RuleSet((DuplicateRule(("url", "text")),))
    measures = Measures.for_rules(chosen, pa.schema([]), pictures, Texts())
    content = [Row("a", b"image", "text"), Row("b", b"image", "text")]

    outcome = run(tmp_path / "a", Plan(Dataset([Rows("a", content)], pa.schema([])), chosen, measures))

    assert balanced(outcome) == (2, 0, 0)
    assert outcome.counts["not_applied"] == {"DUPLICATE": ["url"]}
    with pytest.raises(ValueError, match="MIN_SCORE needs a column score"):
        run(tmp_path / "b", plan_of([Rows("a", content)], [rules.min_cut("score", 1)]))
    assert not (tmp_path / "b").exists()
