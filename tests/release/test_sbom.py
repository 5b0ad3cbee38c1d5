"""The software bills of materials of the images, generated without a container engine."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.image import Image, copy_sources, run_step, stages
from tests.release.distributions import VERSION

TARGETS = ("cpu", "cpu-torch", "cuda")
OURS = ("alignserve", "alignserve-server")


@pytest.fixture(params=[pytest.param(target, marks=pytest.mark.long) for target in ("cpu", "cuda")])
def target(request: pytest.FixtureRequest) -> str:
    """A target of the Dockerfile; `cpu-torch` has the packages of `cuda`, built for CPU."""
    name: str = request.param
    return name


@pytest.fixture
def packages(target: str, tmp_path: Path) -> dict[str, str]:
    """The third-party packages of an image with their versions; only their metadata is installed."""
    site = tmp_path / "install/lib/python3.11/site-packages"
    found = _closure(_requirements(target, tmp_path))
    for each in found.values():
        folder = Path(str(each.locate_file(""))) / _metadata_folder(each)
        shutil.copytree(folder, site / folder.name, ignore=shutil.ignore_patterns("licenses"))
    return {name: each.version for name, each in found.items()}


@pytest.fixture
def sbom(target: str, packages: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """The bill of materials from the Dockerfile's step, which the tool validates against the schema."""
    copy_sources(f"sbom-{target}", tmp_path)
    step = stages()[f"sbom-{target}"][-1][1]
    done = run_step(step, tmp_path)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads((tmp_path / "sbom/sbom.cdx.json").read_text())
    return document


def test_every_package_is_listed_with_its_version(
    target: str, packages: dict[str, str], sbom: dict[str, Any]
) -> None:
    """Each third-party package of the image has a package URL, and only those are listed."""
    listed = {one["purl"] for one in sbom["components"] if canonicalize_name(one["name"]) not in OURS}

    assert {"grpcio", "numpy", "openvino"} <= set(packages)
    assert ("torch" in packages) == (target != "cpu")
    assert listed == {f"pkg:pypi/{name}@{version}" for name, version in packages.items()}
    assert (sbom["metadata"]["component"]["name"], sbom["metadata"]["component"]["version"]) == (
        "alignserve",
        VERSION,
    )


@pytest.mark.parametrize("image", TARGETS)
def test_an_image_has_the_list_of_its_own_packages(image: str) -> None:
    """It lists the packages that the image copies, and is in the documented place."""
    made_of, copied = stages()[f"sbom-{image}"], Image(image).all("COPY")

    assert f"--from=sbom-{image} /sbom /usr/share/doc/alignserve" in copied
    assert f"--from=packages-{image} /install /usr/local" in copied
    assert made_of[-2:] == [
        ("COPY", f"--from=packages-{image} /install /install"),
        ("RUN", "sh sbom.sh /install /sbom"),
    ]


def _requirements(target: str, folder: Path) -> list[Requirement]:
    """Returns the requirements that the Dockerfile passes to pip."""
    copy_sources(f"packages-{target}", folder)
    command = re.search(r"python requirements\.py[\w ]*", dict(stages()[f"packages-{target}"])["RUN"])
    assert command is not None
    return [Requirement(line) for line in run_step(command[0], folder).stdout.splitlines()]


def _closure(requirements: list[Requirement]) -> dict[str, Distribution]:
    """Returns this environment's distributions that the requirements need, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(one, extra) for one in requirements for extra in ("", *one.extras)]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found[name] = distribution(name)
        for needed in map(Requirement, found[name].requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, each) for each in ("", *needed.extras)]
    return found


def _metadata_folder(each: Distribution) -> str:
    """Returns the name of the folder of a distribution's metadata."""
    assert each.files is not None
    return next(path.parts[0] for path in each.files if path.parts[0].endswith(".dist-info"))
