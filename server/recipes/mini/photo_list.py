"""The photographs of `sources.json`, with their captions, digests and authors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.recipes.mini.captions import Photo
from server.recipes.mini.digests import file_digest
from server.recipes.mini.notice import Credit

SOURCES = Path(__file__).parent / "sources.json"


@dataclass(frozen=True)
class Listed:
    """A photograph with its digest and its credit."""

    photo: Photo
    sha256: str
    credit: Credit


def read(sources: Path = SOURCES) -> list[Listed]:
    """The photographs that train. Those held out for questions are left out."""
    if not sources.exists():
        return []
    document = json.loads(sources.read_text("utf-8"))
    return [
        _listed(source, picture)
        for source in document["sources"]
        for picture in source["pictures"]
        if picture["split"] == "train"
    ]


def verify(listed: Listed, folder: Path) -> None:
    """Raises `ValueError` for another file than was listed, and `FileNotFoundError` for none."""
    path = folder / listed.photo.file
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; fetch it: python -m server.recipes.mini.photos {folder}")
    digest = file_digest(path)
    if digest != listed.sha256:
        raise ValueError(
            f"{listed.photo.file} has SHA-256 {digest}, expected {listed.sha256}; fetch it again"
        )


def _listed(source: dict[str, Any], picture: dict[str, Any]) -> Listed:  # Any: JSON
    name, path = source["name"], picture["path"]
    photo = Photo(
        file=f"{source['id']}/{path}",
        captions=tuple(picture["captions"]),
        collection=source.get("collection", source["id"]),
        **{each: tuple(picture.get(each, ())) for each in ("nouns", "people", "actions", "colours", "place")},
    )
    credit = Credit(
        title=path.rpartition("/")[2],
        author=picture.get("credit", source["title"]),
        licence=picture.get("licence", source["licence"]),
        source=f"{name} at {source['commit'][:12]}" if "commit" in source else f"{name} {source['version']}",
    )
    return Listed(photo, picture["sha256"], credit)
