"""Reads the JSON Lines file of an earlier run, so that the next run continues where it stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")

Line = dict[str, Any]  # Any: as JSON has it

_MIN_COSINE = 0.999  # between two embeddings of the same input by the same model; batches differ by far less
_MAX_SCORE_CHANGE = 0.02
_MAX_SIMILARITY_CHANGE = 0.002
_VALUES = ("embedding", "classifications", "similarity")


@dataclass(slots=True)
class Earlier:
    """The lines of an earlier run.

    Attributes:
        path: Of the file.
        done: Number of lines with a result, by input.
        last: The last of these lines.
        whole_bytes: Size of the file up to the end of its last complete line.
        has_errors: Whether there are lines of failed inputs, which are sent again.
    """

    path: Path
    done: Counter[str] = field(default_factory=Counter)
    last: Line | None = None
    whole_bytes: int = 0
    has_errors: bool = False

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """Reads a file; a missing file has no lines.

        Raises:
            OSError: It cannot be read.
            ValueError: It was not written by this command.
        """
        earlier = cls(path)
        if not path.exists():
            return earlier
        if not path.is_file():
            raise ValueError(f"{path} is not a regular file, so nothing can be resumed; leave out --resume")
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):  # otherwise it is incomplete, and its input is sent again
                    earlier._enter(_parsed(line, f"line {number} of {path}"))
                    earlier.whole_bytes += len(line)
        return earlier

    def left(self, items: Iterable[_T], key: Callable[[_T], str]) -> list[_T]:
        """Returns the items without a line; an item that is given twice needs two lines."""
        done = self.done.copy()
        left = []
        for item in items:
            if done[key(item)] > 0:
                done[key(item)] -= 1
            else:
                left.append(item)
        return left

    def check(self, now: Line) -> None:
        """Compares the last line with the server's current answer for the same input.

        Raises:
            ValueError: They differ, so the file would mix incompatible lines.
        """
        assert self.last is not None  # noqa: S101 — without a line there is nothing to compare
        if not _agree(self.last, now):
            raise ValueError(
                f"{self.last['input']} has a different result now than in {self.path}: the model, the labels "
                "or the image has changed; write to another file, or leave out --resume to start over"
            )

    def repair(self) -> None:
        """Removes an incomplete last line and lines of errors from the file; a crash loses no results."""
        if not self.path.exists():
            return
        if not self.has_errors:
            os.truncate(self.path, self.whole_bytes)
            return
        draft = self.path.with_name(f"{self.path.name}.resume")
        with self.path.open("rb") as old, draft.open("wb") as new:
            shutil.copymode(self.path, draft)
            for line in old:
                if line.endswith(b"\n") and "error" not in _parsed(line, str(self.path)):
                    new.write(line)
            new.flush()
            os.fsync(new.fileno())
        draft.replace(self.path)

    def _enter(self, line: Line) -> None:
        if "error" in line:
            self.has_errors = True
        else:
            self.done[line_key(line)] += 1
            self.last = line


def line_key(line: Line) -> str:
    """Returns the key of a line's input, with its kind: a text may look like a file name."""
    return f"{line.get('kind', 'image')}:{line['input']}\t{line.get('text', '')}"


def _parsed(line: bytes, where: str) -> Line:
    try:
        found = json.loads(line.decode(errors="surrogateescape"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or "input" not in found or not {"error", *_VALUES} & set(found):
        raise ValueError(f"{where} was not written by alignserve; give the file of the earlier run")
    return found


def _agree(old: Line, new: Line) -> bool:
    if "embedding" in old and "embedding" in new:
        one, other = np.array(old["embedding"]), np.array(new["embedding"])
        if one.shape != other.shape:
            return False
        return bool(one @ other >= _MIN_COSINE * np.linalg.norm(one) * np.linalg.norm(other))
    if "classifications" in old and "classifications" in new:
        return _scores_agree(_scores(old), _scores(new))
    if "similarity" in old and "similarity" in new:
        return bool(abs(old["similarity"] - new["similarity"]) <= _MAX_SIMILARITY_CHANGE)
    return False


def _scores(line: Line) -> dict[str, float]:
    return {one["label"]: one["score"] for one in line["classifications"]}


def _scores_agree(old: dict[str, float], new: dict[str, float]) -> bool:
    common = set(old) & set(new)
    # Among equally good labels, a different one may be the last that fits into --top-k.
    is_alike = len(old) == len(new) and len(common) >= min(len(old), max(len(old) - 1, 1))
    return is_alike and all(abs(old[label] - new[label]) <= _MAX_SCORE_CHANGE for label in common)
