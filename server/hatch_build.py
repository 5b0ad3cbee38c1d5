"""Gives alignserve-server the version of alignserve, and has it require exactly that one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class SameVersion(MetadataHookInterface):
    """Fills in `version` and `dependencies`.

    Both come from the repository's pyproject.toml. In a source distribution, which lacks that file, hatchling
    takes them from PKG-INFO.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets both fields."""
        pyproject = Path(self.root).parent / "pyproject.toml"
        version = tomllib.loads(pyproject.read_text())["project"]["version"]
        metadata["version"] = version
        metadata["dependencies"] = [f"alignserve=={version}", *self.config["dependencies"]]
