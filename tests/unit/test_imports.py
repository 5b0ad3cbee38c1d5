"""Only the module that runs the model imports torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

TORCHLESS = [
    "batching",
    "model.checkpoint",
    "model.preprocessing.decode",
    "model.encoder",
    "model.fake",
    "model.preprocessing.images",
]


@pytest.mark.parametrize("module", [*TORCHLESS, "model.preprocessing.texts"])
def test_imports_no_torch(module):
    """A part of the server that does not run the model starts without torch and transformers."""
    program = (
        f"import sys, alignserve_server.{module}; print(*{{'torch', 'transformers'}} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
