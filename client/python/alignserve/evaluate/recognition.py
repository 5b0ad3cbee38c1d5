"""Finds out what a source asks of the model, if no option names it."""

from __future__ import annotations

from dataclasses import replace

from alignserve.datasets.source import SourceError
from alignserve.datasets.sources import Kind, open_dataset
from alignserve.datasets.sources.kinds import kind_of_name
from alignserve.evaluate.caption_files import is_caption_file
from alignserve.evaluate.class_set import CLASS_SUFFIX, is_folder_of_classes
from alignserve.evaluate.clip_benchmark import ClipBenchmarkSet
from alignserve.evaluate.question_set import is_question_file
from alignserve.evaluate.sets import SetOptions, Task


def task_of(source: str, options: SetOptions) -> Task:
    """Returns what a source asks.

    Raises:
        SourceError: It cannot be read.
    """
    if is_caption_file(source):
        return Task.RETRIEVAL
    clip_benchmark = ClipBenchmarkSet.at(source, options.split)
    if clip_benchmark is not None:
        return Task.RETRIEVAL if clip_benchmark.is_retrieval else Task.CLASSIFICATION
    if options.class_column is not None:
        return Task.CLASSIFICATION
    if is_question_file(source, options.source.max_row_bytes):
        return Task.QUESTIONS
    dataset = open_dataset([source], replace(options.source, columns=()))
    if is_folder_of_classes(source, dataset):
        return Task.CLASSIFICATION
    if all(kind_of_name(file.name, frozenset()) is Kind.TAR for file in dataset.files):
        return Task.CLASSIFICATION if _has_classes(source, options) else Task.RETRIEVAL
    return Task.RETRIEVAL


def _has_classes(source: str, options: SetOptions) -> bool:
    try:
        open_dataset([source], replace(options.source, text_column=CLASS_SUFFIX, columns=()))
    except SourceError:  # no sample has such a member
        return False
    return True
