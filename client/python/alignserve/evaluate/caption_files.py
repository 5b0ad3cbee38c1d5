"""Reads the JSON in which Flickr30k and COCO have their captions: Karpathy's splits, and COCO's own."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignserve.datasets.row import Row


def is_caption_file(source: str) -> bool:
    """Returns whether a source is a file of JSON, by its name."""
    return source.lower().endswith(".json")


def read_captions(path: Path, split: str, image_root: Path | None) -> list[tuple[Row, Sequence[str]]]:
    """Returns the images of a split with their captions.

    Karpathy's files (`dataset_flickr30k.json`, `dataset_coco.json`) have several splits. COCO has a file for
    each (`captions_val2017.json`), of which all images are taken.

    Args:
        path: Of the file.
        split: Of Karpathy's: `test`, `val`, `train` or `restval`.
        image_root: Folder of the images; by default that of the file. Karpathy's `filepath`, such as
            `val2014`, is a folder below it, or is left out if there is no such folder.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has another form, or no image in this split.
    """
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    root = path.parent if image_root is None else image_root
    try:
        images = value["images"]
        if "annotations" in value:
            return _coco(images, value["annotations"], root)
        return _karpathy(images, split, root, path)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is neither Karpathy's file of a dataset nor COCO's captions: no {error}; write other "
            "captions as JSON Lines with image and captions"
        ) from error


def _karpathy(
    images: Sequence[Mapping[str, Any]], split: str, root: Path, path: Path
) -> list[tuple[Row, Sequence[str]]]:
    rows: list[tuple[Row, Sequence[str]]] = [
        (
            Row(image["filename"], _place(root, image.get("filepath"), image["filename"])),
            [sentence["raw"] for sentence in image["sentences"]],
        )
        for image in images
        if image["split"] == split
    ]
    if not rows:
        splits = ", ".join(sorted({image["split"] for image in images}))
        raise ValueError(f"{path} has no split {split!r}; choose one of {splits} with --split")
    return rows


def _coco(
    images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], root: Path
) -> list[tuple[Row, Sequence[str]]]:
    captions: defaultdict[int, list[str]] = defaultdict(list)
    for annotation in annotations:
        captions[annotation["image_id"]].append(annotation["caption"])
    return [(Row(image["file_name"], root / image["file_name"]), captions[image["id"]]) for image in images]


def _place(root: Path, folder: str | None, name: str) -> Path:
    inner = root / folder if folder else root
    return (inner if inner.is_dir() else root) / name
