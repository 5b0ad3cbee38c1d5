"""What a command is to work on: files, standard input, labels, texts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from alignserve._cli.files import is_image_file
from alignserve._images import ImageInput

STDIN = Path("-")


def read_labels(args: argparse.Namespace, paths: list[Path], *, needs: str) -> list[str]:
    """Returns the labels of a command, and moves to `paths` what stands after them and is meant as such.

    `--label` takes any number of labels, so of `--label cat photo.jpg` it takes the file too.

    Args:
        args: Of the command.
        paths: The files or folders that were found to be such.
        needs: What to say if there is none.
    """
    groups: list[list[str]] = args.label
    if not paths and groups:
        paths += _taken_from(groups[-1])
    labels = [label for group in groups for label in group]
    for label in filter(is_image_file, labels):
        args.usage_error(f"'{label}' after --label is a file; put files before --label")
    if not paths:
        args.usage_error(f"{needs}; put it before --label" if groups else needs)
    check_stdin(args, paths)
    return [*labels, *(read_lines(args.labels_file) if args.labels_file else [])]


def check_stdin(args: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Ends the program if more than one thing is to be read from standard input."""
    files = [getattr(args, name, None) for name in ("labels_file", "texts_file")]
    if list(paths).count(STDIN) + files.count("-") > 1:
        args.usage_error("- is standard input, which can be read once; give it once")


def image_of(path: Path) -> ImageInput:
    """Returns the image to send: a file is read later, and what comes on standard input now.

    Raises:
        ValueError: Nothing comes there.
    """
    if path != STDIN:
        return path
    content: bytes = sys.stdin.buffer.read()
    if not content:
        raise ValueError("-: nothing came on standard input; pipe an image file into it")
    return content


def read_lines(path: str) -> list[str]:
    """Returns the lines of a file, or of standard input for `-`, without blank ones."""
    with nullcontext(sys.stdin) if path == "-" else Path(path).open(encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def _taken_from(group: list[str]) -> list[Path]:
    """Takes the files and folders at the end of a group of labels out of it; the first one is a label."""
    start = len(group)
    while start > 1 and (group[start - 1] == "-" or Path(group[start - 1]).exists()):
        start -= 1
    taken = [Path(word) for word in group[start:]]
    del group[start:]
    return taken
