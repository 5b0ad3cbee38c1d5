"""The inputs of a command: files, standard input, labels and texts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from alignserve._cli.files import is_image_file
from alignserve._images import ImageInput

STDIN = Path("-")


def read_labels(args: argparse.Namespace, paths: list[Path], *, needs: str) -> list[str]:
    """Returns the labels of a command, and moves files that follow them to `paths`.

    `--label` takes any number of labels, so in `--label cat photo.jpg` it takes the file as well.

    Args:
        args: Of the command.
        paths: The files or folders given so far.
        needs: The error message if there are none.
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


def read_pairs(args: argparse.Namespace) -> list[tuple[Path, str]]:
    """Returns the images and texts that `compare` pairs.

    Raises:
        OSError: The file of pairs cannot be read.
        ValueError: A line of it has no tab.
    """
    check_stdin(args, args.image)
    pairs = [] if args.pairs_file is None else _pairs_of(args.pairs_file)
    images, texts = args.image, args.text
    if len(images) == 1:
        images = images * len(texts)
    if len(texts) == 1:
        texts = texts * len(images)
    if len(images) != len(texts):
        args.usage_error(f"{len(images)} images and {len(texts)} texts; give a text for each image")
    return [*zip(images, texts, strict=True), *pairs]


def check_stdin(args: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Exits if standard input is given more than once."""
    files = [getattr(args, name, None) for name in ("labels_file", "texts_file", "pairs_file")]
    if list(paths).count(STDIN) + files.count("-") > 1:
        args.usage_error("- is standard input, which can be read only once; give it once")


def image_of(path: Path) -> ImageInput:
    """Returns the image to send: a path, which is read later, or the bytes from standard input.

    Raises:
        ValueError: Standard input is empty.
    """
    if path != STDIN:
        return path
    content: bytes = sys.stdin.buffer.read()
    if not content:
        raise ValueError("-: standard input is empty; pipe an image file into it")
    return content


def read_lines(path: str) -> list[str]:
    """Returns the lines of a file, or of standard input for `-`, without blank ones."""
    with nullcontext(sys.stdin) if path == "-" else Path(path).open(encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def _pairs_of(path: str) -> list[tuple[Path, str]]:
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        image, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise ValueError(f"{path}: pair {number} has no tab and text; write image file, tab, text")
        pairs.append((Path(image), text))
    return pairs


def _taken_from(group: list[str]) -> list[Path]:
    """Removes and returns the files and folders at the end of a group; its first element is a label."""
    start = len(group)
    while start > 1 and (group[start - 1] == "-" or os.path.exists(group[start - 1])):  # noqa: PTH110 — as `is_image_file`
        start -= 1
    taken = [Path(word) for word in group[start:]]
    del group[start:]
    return taken
