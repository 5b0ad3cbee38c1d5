"""How people write a label: bare, with an article, in a sentence, with an adjective."""

from __future__ import annotations

import numpy as np

TEMPLATES = (
    "{}",
    "{article}",
    "a photo of {article}.",
    "a photo of {article}",
    "a picture of {article}",
    "an image of {article}",
    "a photo of the {}",
    "this is {article}",
    "a close-up photo of {article}",
    "a photo of one {}",
    "there is {article} in the photo",
    "a good photo of {article}",
    "a photo of my {}",
    "the {}",
    "a blurry photo of {article}",
    "a photo of a small {}",
    "a photo of a large {}",
)
_ADJECTIVES = (
    "big", "little", "old", "new", "young", "beautiful", "black", "white", "brown", "grey", "red", "blue",
    "green", "yellow", "orange", "cute", "dark", "bright", "single", "two", "some",
)  # fmt: skip


def with_article(name: str) -> str:
    """`a dog`, `an apple`; a name with an article of its own stays."""
    if name.split(" ", 1)[0].lower() in {"a", "an", "the", "two", "three", "some", "people", "several"}:
        return name
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def filled(template: str, name: str) -> str:
    """The template with the name in place of `{}`, or with its article in place of `{article}`."""
    return template.replace("{article}", with_article(name)).replace("{}", name)


def written(name: str, rng: np.random.Generator, bare: float = 0.4, adjective: float = 0.0) -> str:
    """One way to write a name: bare with probability `bare`, else in a template."""
    if rng.random() < adjective:
        name = f"{_ADJECTIVES[rng.integers(len(_ADJECTIVES))]} {name}"
    if rng.random() < bare:
        return name
    return filled(TEMPLATES[rng.integers(len(TEMPLATES))], name)
