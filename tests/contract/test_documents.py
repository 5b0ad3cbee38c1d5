"""Links between the documents work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.documents import anchors, links, markdown_files, read
from tests.processes import ROOT


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of a document names a file, and a heading in it if it names one."""
    broken = [link for link in links(path.read_text()) if not _resolves(path, link)]

    assert broken == []


def test_readme_is_of_readable_length() -> None:
    """README.md has from 150 to 250 lines."""
    assert 150 <= len(read("README.md").splitlines()) <= 250


def _resolves(document: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = document.parent / name if name else document
    if not target.exists():
        return False
    return not anchor or anchor in anchors(target.read_text())
