"""The distributions that `make dist` builds, and the problems that its check finds."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.processes import ROOT
from tests.release.distributions import CLIENT, SERVER, Distribution, build, problems, tree_problems


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both distributions."""
    folder = tmp_path_factory.mktemp("dist")
    for distribution in (CLIENT, SERVER):
        build(distribution, folder)
    return folder


@pytest.fixture
def client(folder: Path, tmp_path: Path) -> Path:
    """A copy of the client's distribution for tests to damage."""
    for path in (CLIENT.wheel(folder), CLIENT.sdist(folder)):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("distribution", [CLIENT, SERVER], ids=lambda distribution: distribution.name)
def test_a_distribution_has_its_package_and_licenses_only(distribution: Distribution, folder: Path) -> None:
    """Its archives have no tests or caches, and its metadata is valid, with the right version."""
    assert problems(distribution, folder) == []


@pytest.mark.long
def test_a_source_distribution_builds_the_same_wheel(folder: Path) -> None:
    """The server's metadata includes the version and dependencies that the tree has elsewhere."""
    assert tree_problems(SERVER, folder) == []


def test_the_license_of_the_server_is_that_of_the_repository() -> None:
    """hatchling needs a copy inside the project's folder."""
    assert (ROOT / "server/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_extras_of_the_server_are_extras_of_alignserve_too() -> None:
    """Pages can then say only `pip install 'alignserve[server,torch]'`."""
    extras, of_server = (
        tomllib.loads((project / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for project in (ROOT, ROOT / "server")
    )

    assert {name: extras.get(name) for name in of_server} == {
        name: [f"alignserve-server[{name}]"] for name in of_server
    }
    assert extras["server"] == ["alignserve-server"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["tests/test_client.py", "alignserve/model.safetensors"])
def test_a_file_that_does_not_belong_is_named(client: Path, name: str) -> None:
    """A test or a checkpoint in the client's wheel is a problem."""
    with ZipFile(CLIENT.wheel(client), "a") as archive:
        archive.writestr(name, b"")

    assert problems(CLIENT, client) == [f"{CLIENT.wheel(client).name} has {name}"]


@pytest.mark.long
def test_a_missing_license_is_named(client: Path) -> None:
    """A wheel without LICENSE is a problem."""
    name = f"{CLIENT.dist_info}/licenses/LICENSE"
    _rewrite(CLIENT.wheel(client), name, None)

    assert problems(CLIENT, client) == [f"{CLIENT.wheel(client).name} lacks {name}"]


@pytest.mark.long
def test_metadata_of_another_version_are_named(client: Path) -> None:
    """A wheel whose metadata and file name disagree is a problem."""
    metadata = b"Metadata-Version: 2.4\nName: alignserve\nVersion: 9.9\n"
    _rewrite(CLIENT.wheel(client), f"{CLIENT.dist_info}/METADATA", metadata)

    assert f"{CLIENT.wheel(client).name}: its metadata is for alignserve 9.9" in problems(CLIENT, client)


@pytest.mark.long
def test_a_relative_link_is_named(client: Path) -> None:
    """The package index shows the description outside the repository, where such links are broken."""
    metadata = b"Metadata-Version: 2.4\nName: alignserve\nVersion: 0\n\nSee [how](client/README.md#how).\n"
    _rewrite(CLIENT.wheel(client), f"{CLIENT.dist_info}/METADATA", metadata)

    found = problems(CLIENT, client)

    assert (
        f"{CLIENT.wheel(client).name}: its description has the relative link (client/README.md#how)" in found
    )


@pytest.mark.long
def test_a_missing_archive_is_named(client: Path) -> None:
    """A wheel without its source distribution is half a release."""
    CLIENT.sdist(client).unlink()

    assert problems(CLIENT, client) == [f"{CLIENT.sdist(client).name} is missing"]


def _rewrite(wheel: Path, name: str, content: bytes | None) -> None:
    """Replaces or removes a file of a wheel."""
    with ZipFile(wheel) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    del files[name]
    with ZipFile(wheel, "w") as archive:
        for each, data in {**files, **({name: content} if content is not None else {})}.items():
            archive.writestr(each, data)
