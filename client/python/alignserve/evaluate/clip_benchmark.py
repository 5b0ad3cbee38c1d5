"""The sets that CLIP_benchmark writes: tars, with names of classes and templates in files next to them.

They look like this (https://github.com/LAION-AI/CLIP_benchmark, `clip_benchmark_export_wds`):

    SET/classnames.txt                        a name per line; line N is of class N, from 0
    SET/zeroshot_classification_templates.txt a template per line, with {c}
    SET/dataset_type.txt                      `retrieval` or `multilabel`; neither for classes
    SET/test/0.tar                            samples of .jpg, .png or .webp and .cls, or .txt with a caption
                                              per line
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from alignserve.datasets.source import Dataset
from alignserve.evaluate.class_names import ClassNames, Prompts, read_class_names, read_prompts
from alignserve.evaluate.sets import SetOptions

_NAMES = "classnames.txt"
_TEMPLATES = "zeroshot_classification_templates.txt"
_TYPE = "dataset_type.txt"
_SHARDS = "nshards.txt"


@dataclass(frozen=True, slots=True)
class ClipBenchmarkSet:
    """A set that CLIP_benchmark wrote.

    Attributes:
        root: The folder with the names.
        folder: The folder with the tars of a split.
        is_retrieval: Whether its texts are captions, and otherwise classes.
    """

    root: Path
    folder: Path
    is_retrieval: bool

    @classmethod
    def at(cls, source: str, split: str) -> ClipBenchmarkSet | None:
        """Returns the set of a folder, or of the folder of its split; `None` if there is none.

        Raises:
            ValueError: It has several classes for each image.
        """
        given = Path(source)
        for root, folder in ((given, given / split), (given.parent, given)):
            if folder.is_dir() and any((root / name).is_file() for name in (_NAMES, _TYPE)):
                kind = _content(root / _TYPE).strip().lower()
                if kind == "multilabel":
                    raise ValueError(f"{source} has several classes for each image, which is not evaluated")
                return cls(root, folder, kind == "retrieval")
        return None

    def filled(self, options: SetOptions) -> SetOptions:
        """Returns options with the set's own names and templates where none are given.

        Raises:
            ValueError: They cannot be read.
        """
        return replace(
            options, names=options.names or self._names(), prompts=options.prompts or self._prompts()
        )

    def other_files(self, dataset: Dataset) -> Mapping[str, int]:
        """Returns the files among those skipped that belong to the format."""
        return {".txt": int((self.folder / _SHARDS).is_file())} if dataset.skipped else {}

    def _names(self) -> ClassNames | None:
        path = self.root / _NAMES
        return read_class_names(path) if path.is_file() else None

    def _prompts(self) -> Prompts | None:
        path = self.root / _TEMPLATES
        return read_prompts(path) if path.is_file() else None


def _content(path: Path) -> str:
    return path.read_text("utf-8-sig") if path.is_file() else ""
