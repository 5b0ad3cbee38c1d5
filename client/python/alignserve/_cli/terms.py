"""The terms of a composed query: `--image FILE --text TEXT --weight W --minus TEXT`, in any order."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from alignserve._cli.files import has_image_suffix, is_image_file
from alignserve._cli.inputs import image_of
from alignserve._queries import QueryTerm

_Options: TypeAlias = argparse.ArgumentParser | argparse._ArgumentGroup


@dataclasses.dataclass(frozen=True, slots=True)
class GivenTerm:
    """A term as given, before any file is read.

    Attributes:
        image: File, or `-` for standard input.
        text: A text.
        like: The key of a row of a store.
        weight: Its weight.
        is_minus: Whether it was given by `--minus`.
    """

    image: Path | None = None
    text: str | None = None
    like: str | None = None
    weight: float = 1.0
    is_minus: bool = False


class _AddTerm(argparse.Action):
    """Adds an image, a text or a key, as `const` says."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, value: Any, option: Any = None) -> None:  # noqa: ARG002 — argparse's signature
        namespace.terms = [*namespace.terms, GivenTerm(**{str(self.const): value})]


class _AddMinus(argparse.Action):
    """Adds an image file or a text with weight -1."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, _option: Any = None
    ) -> None:
        if is_image_file(value):
            term = GivenTerm(image=Path(value), weight=-1.0, is_minus=True)
        elif has_image_suffix(value):
            parser.error(f"--minus: there is no image file {value!r}")
        else:
            term = GivenTerm(text=value, weight=-1.0, is_minus=True)
        namespace.terms = [*namespace.terms, term]


class _Weigh(argparse.Action):
    """Sets the weight of the last term."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: Any = None
    ) -> None:
        if not namespace.terms:
            parser.error(f"{option} applies to the term before it, such as --text; there is none")
        *earlier, last = namespace.terms
        if last.is_minus and value <= 0:
            parser.error(f"{option} {value:g} after --minus: give how much to subtract, a number above 0")
        weight = -value if last.is_minus else value
        namespace.terms = [*earlier, dataclasses.replace(last, weight=weight)]


def add_terms(parser: _Options) -> None:
    """Adds the options."""
    parser.set_defaults(terms=[])
    parser.add_argument(
        "--image",
        metavar="FILE",
        type=Path,
        action=_AddTerm,
        const="image",
        dest="terms",
        help="image file, or - for stdin; may be repeated, like --text",
    )
    parser.add_argument("--text", metavar="TEXT", action=_AddTerm, const="text", dest="terms", help="text")
    parser.add_argument(
        "--minus",
        metavar="TEXT|FILE",
        action=_AddMinus,
        dest="terms",
        help="text or image file to move away from: a term with weight -1",
    )
    parser.add_argument(
        "--weight",
        metavar="W",
        type=float,
        action=_Weigh,
        dest="terms",
        help="weight of the term before it; below 0, the query moves away from it (default: 1)",
    )


def add_like(parser: _Options) -> None:
    """Adds the option for rows of a store, which `terms_of` does not take."""
    parser.add_argument(
        "--like",
        metavar="KEY",
        action=_AddTerm,
        const="like",
        dest="terms",
        help="row of the store with this key; needs no server by itself",
    )


def terms_of(given: Sequence[GivenTerm]) -> list[QueryTerm]:
    """Returns the terms; standard input is read."""
    return [
        QueryTerm(
            image=None if term.image is None else image_of(term.image), text=term.text, weight=term.weight
        )
        for term in given
    ]
