"""The documentation site builds from the pages, and is complete."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import alignserve
import pytest
from alignserve import errors
from alignserve.v1 import align_service_pb2 as pb

from tests.processes import run

pytestmark = pytest.mark.long
_FETCHED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)="(https?:[^"]*)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does: every link, anchor and entry of the navigation leads somewhere."""
    folder = tmp_path_factory.mktemp("site")
    config = ("--strict", "--quiet", "--config-file", "deploy/docs/mkdocs.yml", "--site-dir", folder)

    built = run(sys.executable, "-m", "mkdocs", "build", *config)

    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    """Each page is at its path in the repository, and a README is the page of its folder."""
    assert (site / "index.html").exists()
    assert (site / "server" / "index.html").exists()
    assert (site / "server" / "docs" / "access" / "index.html").exists()
    assert (site / "tests" / "load" / "RESULTS" / "index.html").exists()


def test_no_page_fetches_from_elsewhere(site: Path) -> None:
    """Fonts, scripts and pictures are the site's own, so that it works without a network."""
    fetched = {url for page in site.rglob("*.html") for url in _FETCHED.findall(page.read_text())}

    assert fetched == set()


def test_links_to_other_files_lead_to_the_code_host(site: Path) -> None:
    """Manifests and sources are not pages of the site."""
    page = (site / "deploy" / "envoy" / "index.html").read_text()

    assert 'href="https://github.com/alignserve/alignserve/blob/main/deploy/envoy/envoy.yaml"' in page


def test_the_reference_of_the_client_has_every_public_name(site: Path) -> None:
    """Each name that `alignserve` exports has an entry."""
    page = (site / "client" / "docs" / "alignserve" / "index.html").read_text()

    assert [
        name for name in alignserve.__all__ if name != "__version__" and f'id="alignserve.{name}"' not in page
    ] == []


def test_the_reference_of_errors_has_the_exceptions_only(site: Path) -> None:
    """Functions that the client's own modules share are not on the page."""
    page = (site / "client" / "docs" / "errors" / "index.html").read_text()

    listed = re.findall(r'<h2 id="alignserve\.errors\.(\w+)"', page)
    assert sorted(listed) == sorted(errors.__all__)


def test_the_reference_of_the_protos_has_every_method_and_message(site: Path) -> None:
    """Each entry has the comments of the proto."""
    page = (site / "protos" / "reference" / "index.html").read_text()
    methods = [method.name for method in pb.DESCRIPTOR.services_by_name["AlignService"].methods]

    anchors = {name.lower() for name in (*methods, *pb.DESCRIPTOR.message_types_by_name)}
    assert [anchor for anchor in sorted(anchors) if f'id="{anchor}"' not in page] == []
    assert "Scores images against candidate labels" in page
