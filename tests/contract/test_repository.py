"""The repository's hooks, issue forms, security policy and dependency lists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.documents import read
from tests.processes import ROOT

FORMS = sorted(
    set((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"}
)
FOLDERS = {".ci", ".github", "client", "deploy", "protos", "server", "tests"}
FIELDS = {"checkboxes", "dropdown", "input", "markdown", "textarea"}


def test_the_hooks_run_tools_of_make_lint() -> None:
    """Each hook is local, and its command, without the options that repair, is in the Makefile."""
    makefile = read("Makefile").replace("$(BIN)", ".venv/bin")
    repositories = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    commands = [hook["entry"].split(" --fix")[0].split(" --force")[0] for hook in repositories[0]["hooks"]]

    assert [repository["repo"] for repository in repositories] == ["local"]
    assert [command for command in commands if command not in makefile] == []


def test_no_folder_of_another_purpose_is_committed() -> None:
    """Such as the output of a command that was tried in the repository."""
    listed = subprocess.run(["git", "ls-tree", "-d", "--name-only", "HEAD"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git repository")

    assert set(listed.stdout.decode().split()) == FOLDERS


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_valid(path: Path) -> None:
    """It has a name, a description, and fields of known kinds with labels and unique identifiers."""
    form: dict[str, Any] = yaml.safe_load(path.read_text())
    identifiers = [field["id"] for field in form["body"]]

    assert {"name", "description", "labels", "body"} == set(form)
    assert {field["type"] for field in form["body"]} <= FIELDS
    assert all(field["attributes"]["label"] for field in form["body"])
    assert len(set(identifiers)) == len(identifiers)


def test_the_tests_that_the_security_policy_names_exist() -> None:
    """Each path in the table of defenses is a file."""
    named = re.findall(r"`(tests/[^`]+)`", read("SECURITY.md"))

    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("project", ["pyproject.toml", "server/pyproject.toml"])
def test_each_dependency_has_its_reason(project: str) -> None:
    """A requirement, unless it names one of our own extras, is on its own line and has a comment."""
    lines = re.findall(r'^  "[\w.\[\]-]+[<>=!~].*$', read(project), flags=re.MULTILINE)

    assert len(lines) > 10
    assert [line for line in lines if not re.search(r'",\s+# \w', line)] == []
