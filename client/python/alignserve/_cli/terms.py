"""The terms of a composed query on the command line: `--image FILE --text TEXT --weight W`, in any order."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignserve._cli.inputs import image_of
from alignserve._queries import QueryTerm


@dataclasses.dataclass(frozen=True, slots=True)
class _GivenTerm:
    image: Path | None = None
    text: str | None = None
    weight: float = 1.0


class _AddTerm(argparse.Action):
    """Adds an image or a text."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, value: Any, option: Any = None) -> None:  # noqa: ARG002 — argparse's signature
        term = _GivenTerm(image=value) if isinstance(value, Path) else _GivenTerm(text=value)
        namespace.terms = [*namespace.terms, term]


class _Weigh(argparse.Action):
    """Sets the weight of the last term."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, _option: Any = None
    ) -> None:
        if not namespace.terms:
            parser.error("--weight applies to the --image or --text before it; there is none")
        *earlier, last = namespace.terms
        namespace.terms = [*earlier, dataclasses.replace(last, weight=value)]


def add_terms(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.set_defaults(terms=[])
    parser.add_argument(
        "--image", metavar="FILE", type=Path, action=_AddTerm, dest="terms", help="image file, or - for stdin"
    )
    parser.add_argument("--text", metavar="TEXT", action=_AddTerm, dest="terms", help="text")
    parser.add_argument(
        "--weight",
        metavar="W",
        type=float,
        action=_Weigh,
        dest="terms",
        help="weight of the image or text before it; below 0, the query moves away from it (default: 1)",
    )


def terms_of(given: Sequence[_GivenTerm]) -> list[QueryTerm]:
    """Returns the terms; standard input is read."""
    return [
        QueryTerm(
            image=None if term.image is None else image_of(term.image), text=term.text, weight=term.weight
        )
        for term in given
    ]
