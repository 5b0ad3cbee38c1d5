"""Reads the names of classes and the prompts around them, also as CLIP_benchmark keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACEHOLDER = "{label}"
_OTHER_PLACEHOLDERS = ("{c}", "{}")  # CLIP_benchmark's and CLIP's


@dataclass(frozen=True, slots=True)
class ClassName:
    """A class.

    Attributes:
        names: Its name, and other names for the same.
        prompts: Whole texts for it, which replace its names in templates.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Returns the name for reports."""
        return self.names[0]

    def texts(self, templates: Sequence[str]) -> list[str]:
        """Returns the texts whose embeddings are averaged: its prompts, or each name in each template."""
        if self.prompts:
            return list(self.prompts)
        filled = templates or (PLACEHOLDER,)
        return [template.replace(PLACEHOLDER, name) for name in self.names for template in filled]


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The classes of a set.

    Attributes:
        classes: In order.
        numbers: Of the classes by the keys of the data, such as names of folders; `None` if the file has only
            an order, which a set that numbers its classes follows.
    """

    classes: tuple[ClassName, ...]
    numbers: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Prompts:
    """The texts around the names of classes.

    Attributes:
        templates: With `{label}` in each; none for just the names.
        by_class: Whole texts by the name of a class, instead of templates.
    """

    templates: tuple[str, ...] = ()
    by_class: Mapping[str, tuple[str, ...]] | None = None

    def of(self, class_: ClassName) -> list[str]:
        """Returns the texts of a class.

        Raises:
            ValueError: There are texts for classes, and none for this one.
        """
        if self.by_class is None:
            return class_.texts(self.templates)
        if class_.name not in self.by_class:
            raise ValueError(f"the file of prompts has none for the class {class_.name!r}")
        return list(self.by_class[class_.name])


def read_class_names(path: Path, dataset_name: str | None = None) -> ClassNames:
    """Reads names of classes.

    A text file has a name per line, in the order of the classes; or a key, a tab and names with tabs between
    them. JSON has a list of names, or an object of names by key. A name in JSON is a text, a list of names
    for the same, or an object with `names` or `prompts` or both.

    Args:
        path: Of the file; JSON if its name ends with `.json`.
        dataset_name: Its entry in the file, if that has the names of several datasets.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is something else.
    """
    if path.suffix.lower() == ".json":
        return _from_json(_read_json(path, dataset_name), path)
    lines = _lines(path)
    rows = [line.split("\t") for line in lines]
    if all(len(row) == 1 for row in rows):
        return ClassNames(tuple(ClassName((row[0],)) for row in rows))
    if any(len(row) == 1 for row in rows):
        raise ValueError(f"{path}: some lines have a tab and some have none; write key, tab, name in each")
    return _keyed({row[0]: tuple(filter(None, row[1:])) for row in rows}, path)


def read_prompts(path: Path, dataset_name: str | None = None) -> Prompts:
    """Reads templates: a text file with one per line, or JSON with a list of them or texts by class.

    Args:
        path: Of the file; JSON if its name ends with `.json`.
        dataset_name: Its entry in the file, if that has the templates of several datasets.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is something else, or a template has no placeholder.
    """
    if path.suffix.lower() != ".json":
        return Prompts(templates_of(_lines(path), str(path)))
    value = _read_json(path, dataset_name)
    if _is_texts(value):
        return Prompts(templates_of(value, str(path)))
    if isinstance(value, dict) and all(_is_texts(texts) and texts for texts in value.values()):
        return Prompts(by_class={name: tuple(texts) for name, texts in value.items()})
    raise ValueError(f"{path}: write a list of templates, or an object with a list of texts for each class")


def templates_of(given: Sequence[str], place: str) -> tuple[str, ...]:
    """Returns templates with `{label}` in them, also for those with `{c}` or `{}`.

    Raises:
        ValueError: One has no placeholder.
    """
    return tuple(_template(each, place) for each in given)


def _template(given: str, place: str) -> str:
    found = given
    for other in _OTHER_PLACEHOLDERS:
        found = found.replace(other, PLACEHOLDER)
    if PLACEHOLDER not in found:
        raise ValueError(f"{place}: template {given!r} has no {PLACEHOLDER}, {{c}} or {{}}")
    return found


def _from_json(value: Any, path: Path) -> ClassNames:
    if isinstance(value, list) and value:
        return ClassNames(tuple(_class(each, path) for each in value))
    if isinstance(value, dict) and value:
        return _keyed({key: _class(each, path) for key, each in value.items()}, path)
    raise ValueError(f"{path}: write a list of names, or an object of names by key")


def _keyed(names: Mapping[str, ClassName | tuple[str, ...]], path: Path) -> ClassNames:
    classes = tuple(each if isinstance(each, ClassName) else ClassName(each) for each in names.values())
    if not all(each.names for each in classes):
        raise ValueError(f"{path}: a key has no name")
    return ClassNames(classes, {key: number for number, key in enumerate(names)})


def _class(value: Any, path: Path) -> ClassName:
    if isinstance(value, str) and value:
        return ClassName((value,))
    if _is_texts(value) and value:
        return ClassName(tuple(value))
    if isinstance(value, dict):
        names, prompts = value.get("names", []), value.get("prompts", [])
        if _is_texts(names) and _is_texts(prompts) and (names or prompts):
            return ClassName(tuple(names or prompts[:1]), tuple(prompts))
    raise ValueError(
        f"{path}: {value!r} is not a class; write a name, a list of names, or an object with names or prompts"
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each for each in value)


def _read_json(path: Path, dataset_name: str | None) -> Any:
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if dataset_name is None:
        return value
    if not isinstance(value, dict) or dataset_name not in value:
        known = ", ".join(sorted(value)[:20]) if isinstance(value, dict) else "no datasets"
        raise ValueError(f"{path} has no entry {dataset_name!r}; it has {known}")
    return value[dataset_name]


def _lines(path: Path) -> list[str]:
    lines = [line.rstrip("\r\n") for line in path.read_text("utf-8-sig").splitlines()]
    found = [line.strip() if "\t" not in line else line for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{path} is empty")
    return found
