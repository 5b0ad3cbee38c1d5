"""The manifest for KubeRay; it needs no Ray."""

from __future__ import annotations

import yaml

from tests.processes import ROOT

FOLDER = ROOT / "deploy/ray"


def test_kuberay_serves_the_same_configuration() -> None:
    """The manifest holds a copy, since it can refer to no file."""
    manifest = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    config = yaml.safe_load((FOLDER / "serve_config.yaml").read_text())

    assert yaml.safe_load(manifest["spec"]["serveConfigV2"]) == config
