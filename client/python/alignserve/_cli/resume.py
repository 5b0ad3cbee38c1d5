"""What an earlier run has written to a file of JSON lines, so that the next one goes on where it stopped."""

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

_LEAST_COSINE = 0.999  # of an embedding with itself, of one model; batches differ by far less
_MOST_SCORE_CHANGE = 0.02
_VALUES = ("embedding", "classifications")


@dataclass(slots=True)
class Earlier:
    """The lines of an earlier run.

    Attributes:
        path: Of the file.
        done: How many lines with a result there are of each input.
        last: The last of them.
        whole_bytes: Size of the file up to the end of its last whole line.
        has_errors: Whether there are lines of inputs that failed, which are done again.
    """

    path: Path
    done: Counter[str] = field(default_factory=Counter)
    last: Line | None = None
    whole_bytes: int = 0
    has_errors: bool = False

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """Reads a file; one that is not there has no lines.

        Raises:
            OSError: It cannot be read.
            ValueError: It is none that this command writes.
        """
        earlier = cls(path)
        if not path.exists():
            return earlier
        if not path.is_file():
            raise ValueError(f"{path} is not a regular file, so nothing can be resumed; leave out --resume")
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):  # otherwise it was cut, and is done again
                    earlier._enter(_parsed(line, f"line {number} of {path}"))
                    earlier.whole_bytes += len(line)
        return earlier

    def left(self, items: Iterable[_T], key: Callable[[_T], str]) -> list[_T]:
        """Returns the items without a line; an item that is given twice needs two."""
        done = self.done.copy()
        left = []
        for item in items:
            if done[key(item)] > 0:
                done[key(item)] -= 1
            else:
                left.append(item)
        return left

    def check(self, now: Line) -> None:
        """Compares the last line with the same input's as the server answers now.

        Raises:
            ValueError: They differ, so lines of both would not belong together.
        """
        assert self.last is not None  # noqa: S101 — or there was nothing to ask about
        if not _agree(self.last, now):
            raise ValueError(
                f"{self.last['input']} has another result now than in {self.path}: the model, the labels or "
                "the image has changed; write to another file, or leave out --resume to begin anew"
            )

    def repair(self) -> None:
        """Takes a cut line, and lines of errors, out of the file; a crash meanwhile loses no result."""
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
    """Returns what tells the inputs of lines apart; a text may be written like the name of a file."""
    return f"{line.get('kind', 'image')}:{line['input']}"


def _parsed(line: bytes, where: str) -> Line:
    try:
        found = json.loads(line.decode(errors="surrogateescape"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or "input" not in found or not {"error", *_VALUES} & set(found):
        raise ValueError(f"{where} is not one that alignserve writes; give the file of the earlier run")
    return found


def _agree(old: Line, new: Line) -> bool:
    if "embedding" in old and "embedding" in new:
        one, other = np.array(old["embedding"]), np.array(new["embedding"])
        if one.shape != other.shape:
            return False
        return bool(one @ other >= _LEAST_COSINE * np.linalg.norm(one) * np.linalg.norm(other))
    if "classifications" in old and "classifications" in new:
        return _scores_agree(_scores(old), _scores(new))
    return False


def _scores(line: Line) -> dict[str, float]:
    return {one["label"]: one["score"] for one in line["classifications"]}


def _scores_agree(old: dict[str, float], new: dict[str, float]) -> bool:
    common = set(old) & set(new)
    # Of labels that are equally good, the last one that fits into --top-k may be another one.
    is_alike = len(old) == len(new) and len(common) >= min(len(old), max(len(old) - 1, 1))
    return is_alike and all(abs(old[label] - new[label]) <= _MOST_SCORE_CHANGE for label in common)
