"""Only the modules that run the model import torch."""

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
    """Parts of the server that do not run the model work without torch and transformers."""
    program = (
        f"import sys, alignserve_server.{module}; print(*{{'torch', 'transformers'}} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
