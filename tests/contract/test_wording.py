"""Prose follows the rules of wording.toml."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.contract.wording import BREAK, CONFIG, check, check_commits, find, prose_of

SOURCE = '''
def leave(name: str) -> None:  # forgets that
    """Forgets a caller, for

    good, or for an hour."""
    # Each batch waits at
    # hand.
    raise ValueError(f"{name!r} is "
                     "no name", "at", "hand")
'''


@pytest.mark.parametrize("rule", CONFIG["rules"], ids=lambda rule: rule["example"][0])
def test_rule_finds_its_examples_only(rule: dict[str, Any]) -> None:
    """A rule finds each of its examples, and nothing in the wordings that it calls fine."""
    found = [re.search(rule["find"], f"{BREAK} {text} {BREAK}", re.IGNORECASE) for text in rule["example"]]
    fine = [re.search(rule["find"], f"{BREAK} {text} {BREAK}", re.IGNORECASE) for text in rule["fine"]]

    assert all(found)
    assert not any(fine)


def test_prose_of_python_is_read_across_lines() -> None:
    """Docstrings, comments and messages are read across line breaks; code and separate strings part them."""
    found = [line.rsplit(": ", 1)[0] for line in find(prose_of("a.py", SOURCE), "a.py")]

    assert sorted(found) == ["a.py:3: for good", "a.py:6: at hand", "a.py:8: is no name"]


def test_inline_code_is_not_prose() -> None:
    """Words in backticks, paths and names with underscores are not read."""
    assert list(find("`for ever` and for_ever and load/beside.py", "a.md")) == []


@pytest.mark.long
def test_finished_paths_follow_the_rules() -> None:
    """The paths that wording.toml lists break no rule."""
    assert check(*CONFIG["paths"]) == []


def test_commit_subjects_follow_the_rules() -> None:
    """Subjects of recent commits break no rule."""
    assert check_commits() == []
