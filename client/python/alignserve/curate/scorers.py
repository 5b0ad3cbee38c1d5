"""Plug-in scorers: the user's own models, for scores such as `nsfw_score_opennsfw2`.

A scorer is a callable, named as `module:callable`, that takes the bytes of some image files and as many
texts, and returns a number for each pair, or `None` or NaN for a pair without a score:

    def score(images: list[bytes], texts: list[str | None]) -> list[float]: ...
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from alignserve.curate.columns import number
from alignserve.datasets.row import RowFailure

Score: TypeAlias = float | RowFailure | None
_Callable: TypeAlias = Callable[[list[bytes], list[str | None]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A column, and the callable that fills it."""

    column: str
    target: str
    call: _Callable

    @classmethod
    def load(cls, column: str, target: str) -> Scorer:
        """Imports a scorer that is given as `module:callable`, from the current folder too.

        Raises:
            ValueError: It is not of that form, or there is no such callable.
        """
        module, colon, name = target.partition(":")
        if not (module and colon and name):
            raise ValueError(f"'{target}' is not module:callable, such as mymodels.nsfw:score")
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # an installed script has its own folder there instead
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"scorer {target} cannot be loaded: {error}") from error
        if not callable(found):
            raise ValueError(f"scorer {target} is not callable")
        return cls(column, target, found)

    def scores(self, images: list[bytes], texts: list[str | None]) -> list[Score]:
        """Returns a score for each pair; if the callable raises, each pair is tried by itself.

        Raises:
            ValueError: The callable returned another number of scores, or something that is not a number.
        """
        try:
            return self._checked(images, texts)
        except _ScorerError as error:
            if len(images) == 1:
                return [RowFailure("SCORER_FAILED", f"scorer {self.target}: {error.__cause__!r}")]
            return [self.scores([image], [text])[0] for image, text in zip(images, texts, strict=True)]

    def _checked(self, images: list[bytes], texts: list[str | None]) -> list[Score]:
        try:
            found = list(self.call(images, texts))
        except Exception as error:  # the user's code may raise anything
            raise _ScorerError from error
        if len(found) != len(images):
            raise ValueError(f"scorer {self.target} returned {len(found)} scores for {len(images)} pairs")
        return [self._number(value) for value in found]

    def _number(self, value: Any) -> float | None:
        if value is None:
            return None
        try:
            return number(float(value))
        except (TypeError, ValueError) as error:
            raise ValueError(f"scorer {self.target} returned {value!r}, which is not a number") from error


class _ScorerError(Exception):
    """The user's code raised its cause."""
