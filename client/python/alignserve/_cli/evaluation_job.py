"""Runs `evaluate`: opens the set and the server, and reports what was measured."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from alignserve import __version__
from alignserve._cli import output
from alignserve._cli.connection import connected
from alignserve._cli.evaluation_tables import tables
from alignserve._cli.job_progress import JobProgress
from alignserve._cli.job_sources import complain_of_skipped, source_options
from alignserve._results import ModelInfo
from alignserve.datasets.durable import write_json, write_lines
from alignserve.datasets.source import SourceError
from alignserve.evaluate.caption_set import CaptionSet, open_captions
from alignserve.evaluate.class_names import Prompts, read_class_names, read_prompts, templates_of
from alignserve.evaluate.class_set import ClassSet, open_classes
from alignserve.evaluate.embedding import Embedder
from alignserve.evaluate.evaluation import (
    Result,
    Retrieval,
    evaluate_captions,
    evaluate_classes,
    evaluate_questions,
)
from alignserve.evaluate.inputs import Account
from alignserve.evaluate.question_set import QuestionSet, open_questions
from alignserve.evaluate.recognition import task_of
from alignserve.evaluate.reliability_plot import plot
from alignserve.evaluate.sets import SetOptions, Task

SCHEMA_VERSION = 1
"""Of the report; raised when a field changes its meaning or is removed. New fields may come at any time."""

_OK, _SOME_FAILED = 0, 1
_MAX_NAMED = 20  # failures on the terminal; failures.jsonl has all
_MODEL = (
    *("model_id", "model_revision", "fingerprint", "runtime", "dtype", "device", "embedding_dimension"),
    *("temperature", "server_version", "min_cosine_similarity"),
)
_OPTIONS = (
    *("kind", "image_column", "text_column", "key_column", "image_root", "delimiter", "dataset_name"),
    *("class_column", "captions_column", "captions_per_image", "split", "gallery", "bins"),
)

_Set: TypeAlias = ClassSet | CaptionSet | QuestionSet


def run(args: argparse.Namespace) -> int:
    """Evaluates the server's model, and returns the exit code."""
    try:
        return _run(args)
    except SourceError as error:
        raise ValueError(str(error)) from error


def _run(args: argparse.Namespace) -> int:
    started = datetime.now(UTC)
    begin = time.monotonic()
    options = _set_options(args)
    with connected(args) as client:
        account = Account()
        embedder = Embedder(client, account, window=args.window)
        options = replace(options, source=source_options(args, embedder.info))
        task = Task(args.task) if args.task else task_of(args.source, options)
        opened = _opened(args.source, task, options)
        gallery = _gallery(args, task, options)
        try:
            with _showing(account, opened):
                result = _evaluated(args, opened, gallery, embedder)
        except ValueError:  # nothing could be measured, and the failures say why
            _complain_of(account, [], None)
            raise
        embedder.check_model()
    readings = [each.reading for each in (opened, gallery) if each is not None]
    problems = [problem for reading in readings for problem in reading.problems]
    for reading in readings:
        complain_of_skipped(reading.skipped)
    report = {
        "schema_version": SCHEMA_VERSION,
        "command": _command(sys.argv[1:]),
        "started_at": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 3),
        "client_version": __version__,
        "server": args.server,
        "model": _model(embedder.info),
        "dataset": {"source": args.source, "task": str(task), "digest": embedder.digest},
        "options": _options(args, options, opened),
        "counts": account.as_data(),
        "problems": problems,
        **result.as_data(),
    }
    _complain_of(account, problems, args.folder)
    if args.folder is not None:
        _write(args.folder, report, result, account)
    _print(args, report, result)
    return _SOME_FAILED if account.failures or account.left_out or problems else _OK


def _set_options(args: argparse.Namespace) -> SetOptions:
    """Reads the files of names and templates, before anything else."""
    prompts = None
    if args.template:
        prompts = Prompts(templates_of(args.template, "--template"))
    elif args.templates is not None:
        prompts = read_prompts(args.templates, args.dataset_name)
    return SetOptions(
        names=None if args.classes is None else read_class_names(args.classes, args.dataset_name),
        prompts=prompts,
        class_column=args.class_column,
        captions_column=args.captions_column,
        captions_per_image=args.captions_per_image,
        split=args.split,
    )


def _opened(source: str, task: Task, options: SetOptions) -> _Set:
    if task is Task.CLASSIFICATION:
        return open_classes(source, options)
    return open_captions(source, options) if task is Task.RETRIEVAL else open_questions(source, options)


def _gallery(args: argparse.Namespace, task: Task, options: SetOptions) -> ClassSet | None:
    if args.gallery is None:
        return None
    if task is not Task.CLASSIFICATION:
        args.usage_error(f"--gallery is for classification, not for {task}")
    return open_classes(args.gallery, options)


def _evaluated(
    args: argparse.Namespace, opened: _Set, gallery: ClassSet | None, embedder: Embedder
) -> Result:
    keeps_lines = args.folder is not None
    if isinstance(opened, ClassSet):
        return evaluate_classes(
            opened,
            embedder,
            gallery=gallery,
            gallery_name=args.gallery or "",
            bins=args.bins,
            keeps_lines=keeps_lines,
        )
    if isinstance(opened, CaptionSet):
        return evaluate_captions(opened, embedder)
    return evaluate_questions(opened, embedder, bins=args.bins, keeps_lines=keeps_lines)


@contextmanager
def _showing(account: Account, opened: _Set) -> Iterator[None]:
    progress = JobProgress(sys.stderr, files=0, total=opened.total)
    account.on_input = lambda failed: progress.row(failed=failed)
    try:
        yield
    finally:
        progress.finish()


def _command(arguments: Sequence[str]) -> str:
    """Returns the command line, without the values of headers, which may be secret."""
    shown = [
        f"{each.partition('=')[0]}=…" if before == "--header" or each.startswith("--header=") else each
        for before, each in pairwise(["alignserve", *arguments])
    ]
    return shlex.join(["alignserve", *shown])


def _model(info: ModelInfo) -> dict[str, Any]:
    facts = asdict(info)
    return {name: facts[name] for name in _MODEL}


def _options(args: argparse.Namespace, options: SetOptions, opened: _Set) -> dict[str, Any]:
    prompts = opened.prompts if isinstance(opened, ClassSet) else options.prompts or Prompts()
    given = {name: getattr(args, name) for name in _OPTIONS}
    return {
        **{name: str(value) if isinstance(value, Path) else value for name, value in given.items()},
        "classes": None if args.classes is None else str(args.classes),
        "templates": list(prompts.templates),
        "texts_by_class": prompts.by_class is not None,
    }


def _complain_of(account: Account, problems: list[str], folder: Path | None) -> None:
    for failure in account.failures[:_MAX_NAMED]:
        output.complain(f"{failure.key}: {failure.reason}: {failure.message}")
    if len(account.failures) > _MAX_NAMED:
        rest = len(account.failures) - _MAX_NAMED
        where = "--to FOLDER writes all of them" if folder is None else f"see {folder / 'failures.jsonl'}"
        output.complain(f"{rest} more failed; {where}")
    for reason, count in account.left_out.items():
        output.complain(f"left out: {count} {reason}")
    for problem in problems:
        output.complain(f"problem: {problem}")


def _write(folder: Path, report: dict[str, Any], result: Result, account: Account) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    failures = (json.dumps(asdict(failure)) for failure in account.failures)
    write_lines(folder / "failures.jsonl", failures)
    if not isinstance(result, Retrieval):
        write_lines(folder / "answers.jsonl", (json.dumps(line.as_data()) for line in result.lines))
        title = f"{report['model']['model_id']} on {Path(report['dataset']['source']).name}"
        (folder / "reliability.svg").write_text(plot(result.calibration, title), encoding="utf-8")


def _print(args: argparse.Namespace, report: dict[str, Any], result: Result) -> None:
    if args.json:
        print(output.json_text(report, sys.stdout))
        return
    model = report["model"]
    counts = report["counts"]
    failed = sum(counts["failed"].values())
    print(f"{model['model_id']} ({model['fingerprint']}) on {report['dataset']['source']}")
    print(f"{counts['images']} images and {counts['texts']} texts, {failed} failed")
    for table in tables(result):
        print(f"\n{table}")
