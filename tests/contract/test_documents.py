"""The pages agree with each other, and refer to things that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from alignserve_server.settings import Settings
from alignserve_server.settings.sources import unknown_variables

from deploy.docs.pages import pages
from tests.contract.documents import anchors, code_blocks, links, read
from tests.processes import ROOT

_SERVE = re.compile(r"\balignserve-server((?: +-(?:\\\n|[^\n|#>&])*)?)")
_MAKE = re.compile(r"^(?:\w+=\S+ )*make ([a-z][a-z-]*)")
_OTHER_FLAGS = {"--config", "--help", "--version"}


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of a document names a file, and a heading in it if it names one."""
    broken = [link for link in links(path.read_text()) if not _resolves(path, link)]

    assert broken == []


def test_readme_is_of_readable_length() -> None:
    """README.md has from 150 to 250 lines."""
    assert 150 <= len(read("README.md").splitlines()) <= 250


def test_operators_guide_is_short() -> None:
    """server/README.md has at most 200 lines; each topic has its own page."""
    assert len(read("server/README.md").splitlines()) <= 200


def test_commands_use_flags_that_exist() -> None:
    """Each flag that a page gives to `alignserve-server`, without a subcommand, is one of a setting."""
    used = {
        flag
        for block in _shell_blocks()
        for arguments in _SERVE.findall(block)
        for flag in re.findall(r"(?<=\s)--[a-z-]+", arguments)
    }

    assert "--checkpoint" in used
    assert used - _OTHER_FLAGS - {_flag(name) for name in Settings.model_fields} == set()


def test_make_targets_exist() -> None:
    """Each `make TARGET` of a page is one of the Makefile's."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))
    named = {target for command in _commands() for target in _MAKE.findall(command)}

    assert "run" in named
    assert named - targets == set()


def test_modules_exist() -> None:
    """Each `python -m MODULE` of a page can be found from the root of the repository."""
    named = {module for line in _commands() for module in re.findall(r"\bpython3? -m ([\w.]+)", line)}

    assert "server.recipes.mini" in named
    assert [module for module in named if importlib.util.find_spec(module) is None] == []


def test_variables_are_known() -> None:
    """Each variable `ALIGNSERVE_…` on a page is one of the server's or of the client's.

    The page on unmodified clients documents those that its scripts are given.
    """
    found = [page.read_text() for page in pages() if page.parent.name != "unmodified"]
    named = {name for text in found for name in re.findall(r"\bALIGNSERVE_[A-Z_]+\b", text)}

    assert "ALIGNSERVE_MAX_BATCH_SIZE" in named
    assert unknown_variables(dict.fromkeys(named, "1"), Settings.model_fields) == []


def _shell_blocks() -> list[str]:
    return [block for page in pages() for block in code_blocks(page.read_text(), "sh")]


def _commands() -> list[str]:
    """The lines of every page's shell blocks, and all words in backticks."""
    lines = [line.strip() for block in _shell_blocks() for line in block.splitlines()]
    return [*lines, *(words for page in pages() for words in re.findall(r"`([^`\n]+)`", page.read_text()))]


def _flag(name: str) -> str:
    is_on = Settings.model_fields[name].default is True
    return f"--{'no-' if is_on else ''}{name.replace('_', '-')}"


def _resolves(document: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = document.parent / name if name else document
    if not target.exists():
        return False
    return not anchor or anchor in anchors(target.read_text())
