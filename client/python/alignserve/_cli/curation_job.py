"""Runs `curate`: makes the rules and measures that the options ask for, and says what became of every row."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from alignserve._cli.connection import connected
from alignserve._cli.job_progress import JobProgress
from alignserve._cli.job_sources import opened, source_options
from alignserve._cli.output import complain
from alignserve.curate import language, rules
from alignserve.curate.columns import similarity_column
from alignserve.curate.duplicates import HashListError, PhashSet
from alignserve.curate.embeddings import check_embeddings, digest
from alignserve.curate.measuring import Measures
from alignserve.curate.pictures import Limits, PictureProcesses
from alignserve.curate.plan import Options, Plan
from alignserve.curate.presets import PRESETS
from alignserve.curate.rules import AnyRule, FractionRule, NearDuplicateRule, RuleSet
from alignserve.curate.run import Here, OnProgress, Outcome, Workers, curate
from alignserve.curate.scorers import Scorer
from alignserve.curate.similarity import Comparing
from alignserve.datasets.output import FAILURES, OutputError
from alignserve.datasets.source import Dataset, SourceError
from alignserve.datasets.sources import ALL_COLUMNS, Kind, open_dataset
from alignserve.datasets.sources.kinds import kind_of_name

WorkersOf: TypeAlias = Callable[[Plan, OnProgress], Workers]

_OK, _SOME_FAILED = 0, 1
_DOWNLOADED = ("url", "original_width", "original_height")  # of img2dataset, which rules look at
_STAGES = {"measured": "measuring", "compared": "comparing", "written": "writing"}


def run(args: argparse.Namespace, workers_of: WorkersOf = Here) -> int:
    """Curates the pairs, and returns the exit code.

    Args:
        args: Of the command.
        workers_of: Returns what does the passes of a plan.
    """
    dataset = opened(lambda: _with_columns(args))
    progress = _Passes()
    with ExitStack() as stack:
        plan = plan_of(args, dataset, stack)
        for name, columns in plan.measures.missing(plan.rules).items():
            missing = ", ".join(columns)
            complain(f"rule {name} is not applied: the source has no column {missing}; --scorer can fill it")
        workers = workers_of(plan, progress)
        try:
            outcome = curate(
                plan,
                args.folder,
                resume=args.resume,
                sources=args.source,
                workers=workers,
                on_progress=progress,
            )
        except OutputError:
            raise
        except BaseException:
            progress.finish()
            complain("the run has ended early; run the same command with --resume to do the rest")
            raise
        progress.finish()
    _report(outcome)
    failed = outcome.ledger.failed
    print(outcome.summary() + (f"; see {args.folder / FAILURES}" if failed else ""))
    return _OK if outcome.ledger.is_success else _SOME_FAILED


def plan_of(args: argparse.Namespace, dataset: Dataset, stack: ExitStack) -> Plan:
    """Returns what the options ask for.

    Args:
        args: Of the command.
        dataset: The pairs.
        stack: Closes processes and connections at the end.
    """
    scorers = [Scorer.load(column, target) for column, target in args.scorer]
    pictures = stack.enter_context(PictureProcesses(Limits(), processes=args.processes))
    comparing = None
    if not args.no_similarity:
        comparing = Comparing(stack.enter_context(connected(args)), args.window)
    chosen = _rules(args, None if comparing is None else similarity_column(comparing.model_id))
    measures = Measures.for_rules(
        chosen, dataset.schema, pictures.measure, language, scorers=scorers, comparing=comparing
    )
    options = Options(args.kept_only, not args.no_images, args.rows_per_shard)
    return Plan(dataset, chosen, measures, options, pictures.thumbnail)


class _Passes:
    """Shows the progress of each pass, after each shard."""

    def __init__(self) -> None:
        self._passes: dict[str, JobProgress] = {}

    def __call__(self, stage: str, rows: int) -> None:
        if stage not in self._passes:
            self.finish()
            complain(f"{_STAGES[stage]} rows")
            self._passes[stage] = JobProgress(sys.stderr, files=1, total=self._total)
        for _ in range(rows):
            self._passes[stage].row(failed=False)

    def finish(self) -> None:
        """Ends the line on a terminal."""
        for progress in self._passes.values():
            progress.finish()

    @property
    def _total(self) -> int | None:
        """Returns the number of rows, which is known after the first pass."""
        return self._passes["measured"].done if "measured" in self._passes else None


def _report(outcome: Outcome) -> None:
    """Prints what each rule did."""
    counts = outcome.counts
    for name, first in counts["first_reasons"].items():
        unjudged = counts["unjudged"].get(name, 0)
        more = f", {unjudged} rows without a value" if unjudged else ""
        every = counts["all_reasons"][name]
        complain(f"{name}: the first reason of {first} rows, a reason of {every}{more}")
    for name, search in counts.get("searches", {}).items():
        complain(
            f"{name}: exact search among {search['rows']:,} rows in {search['cells']:,} cells; a bound of "
            f"{search['bounds']:,} pairs and the cosine of {search['cosines']:,} were computed"
        )


def _with_columns(args: argparse.Namespace) -> Dataset:
    """Opens the sources with the columns that are asked for, by default with all that can be listed."""
    options = replace(source_options(args, None), columns=(), reads_images=True)
    if args.columns is not None:
        return open_dataset(args.source, replace(options, columns=args.columns))
    try:
        return open_dataset(args.source, replace(options, columns=(ALL_COLUMNS,)))
    except SourceError:  # some sources list none
        dataset = open_dataset(args.source, options)
    kinds = {kind_of_name(file.name, frozenset()) for file in dataset.files}
    if kinds & {Kind.TAR, Kind.JSON_LINES}:
        return open_dataset(args.source, replace(options, columns=_DOWNLOADED))
    return dataset


def _rules(args: argparse.Namespace, similarity: str | None) -> RuleSet:
    preset = (PRESETS[args.preset]() if args.preset else RuleSet()).without(args.without)
    more: list[AnyRule] = []
    if args.language:
        more.append(rules.languages(args.language))
        preset = preset.without({"OTHER_LANGUAGE"} & set(preset.names))
    if args.blocked_words:
        more.append(rules.blocked_words(line for path in args.blocked_words for line in _lines(path)))
    if args.exclude_phashes:
        more.append(rules.excluded_phashes(_phashes(args.exclude_phashes)))
    more += [rules.min_cut(column, limit) for column, limit in args.min]
    more += [rules.max_cut(column, limit) for column, limit in args.max]
    for column, fraction in args.top:
        if column is None and similarity is None:
            raise ValueError(f"--top {float(fraction):g} is of similarities; leave out --no-similarity")
        more.append(FractionRule(column or str(similarity), fraction))
    if args.near_duplicates:
        check_embeddings(args.near_duplicates)
        vectors = digest(args.near_duplicates)
        more.append(NearDuplicateRule(args.near_duplicates, args.min_cosine, vectors))
    return preset.plus(more)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _phashes(paths: Sequence[Path]) -> PhashSet:
    try:
        return PhashSet.load(*paths)
    except HashListError as error:
        raise ValueError(str(error)) from error
