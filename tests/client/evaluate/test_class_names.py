"""Files of class names and templates, in each of their forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alignserve.evaluate.class_names import ClassName, Prompts, read_class_names, read_prompts, templates_of


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_lines_are_names_in_order(tmp_path: Path) -> None:
    """As in CLIP_benchmark's classnames.txt; blank lines are not classes."""
    found = read_class_names(written(tmp_path, "classnames.txt", "a cat\n\nsea lion \n"))

    assert [each.names for each in found.classes] == [("a cat",), ("sea lion",)]
    assert found.numbers is None


def test_lines_with_tabs_have_keys_and_synonyms(tmp_path: Path) -> None:
    """The first cell is the folder."""
    found = read_class_names(written(tmp_path, "c.txt", "n01440764\ttench\tTinca tinca\nn02\tgoldfish\n"))

    assert found.numbers == {"n01440764": 0, "n02": 1}
    assert found.classes[0].names == ("tench", "Tinca tinca")


def test_json_names_classes_by_folder(tmp_path: Path) -> None:
    """A name, a list of names for the same, or whole prompts."""
    names = {
        "n1": "tench",
        "n2": ["robin", "redbreast"],
        "n3": {"names": ["ox"], "prompts": ["an ox, up close"]},
    }

    found = read_class_names(written(tmp_path, "c.json", names))

    assert found.numbers == {"n1": 0, "n2": 1, "n3": 2}
    templates = ["a {label}", "the {label}"]
    assert found.classes[1].texts(templates) == ["a robin", "the robin", "a redbreast", "the redbreast"]
    assert found.classes[2].texts(templates) == ["an ox, up close"]
    assert found.classes[0].texts([]) == ["tench"]


def test_one_file_may_have_several_datasets(tmp_path: Path) -> None:
    """As CLIP_benchmark's en_classnames.json and en_zeroshot_classification_templates.json do."""
    names = written(tmp_path, "en_classnames.json", {"cifar10": ["airplane", "bird"], "mnist": ["0"]})
    templates = written(tmp_path, "en_templates.json", {"cifar10": ["a blurry photo of a {c}."]})

    assert [each.name for each in read_class_names(names, "cifar10").classes] == ["airplane", "bird"]
    assert read_prompts(templates, "cifar10").templates == ("a blurry photo of a {label}.",)
    with pytest.raises(ValueError, match="no entry 'cars'; it has cifar10, mnist"):
        read_class_names(names, "cars")


def test_texts_by_class_replace_templates(tmp_path: Path) -> None:
    """As CuPL's prompts; a class without any is an error."""
    prompts = read_prompts(written(tmp_path, "cupl.json", {"tench": ["A tench is a fish."]}))

    assert prompts.of(ClassName(("tench",))) == ["A tench is a fish."]
    with pytest.raises(ValueError, match="none for the class 'ox'"):
        prompts.of(ClassName(("ox",)))


def test_templates_have_three_notations() -> None:
    """CLIP_benchmark writes {c}, CLIP {} and this project {label}."""
    assert templates_of(["a {c}.", "a {}.", "a {label}."], "here") == ("a {label}.",) * 3
    assert Prompts(("a {label}",)).of(ClassName(("cat",))) == ["a cat"]
    with pytest.raises(ValueError, match="'a photo' has no"):
        templates_of(["a photo"], "here")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", "", "is empty"),
        ("c.txt", "n1\ttench\nox\n", "some lines have a tab and some have none"),
        ("c.txt", "n1\t\n", "a key has no name"),
        ("c.json", "{", "is not JSON"),
        ("c.json", [], "a list of names, or an object"),
        ("c.json", {"n1": 3}, "3 is not a class"),
        ("c.json", {"n1": {}}, "is not a class"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: Any, message: str) -> None:
    """The message says what is wrong."""
    with pytest.raises(ValueError, match=message):
        read_class_names(written(tmp_path, name, content))
