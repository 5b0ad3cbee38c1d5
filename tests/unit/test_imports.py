"""Processes import only what they need."""

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


RUNTIMES = {"torch", "transformers", "openvino"}
DOORS = {"grpc", "starlette", "uvicorn", "alignserve"}


@pytest.mark.parametrize(
    ("module", "unwanted"), [("serving.front_server", RUNTIMES), ("serving.device_process", RUNTIMES | DOORS)]
)
def test_a_process_of_a_part_imports_nothing_of_the_other(module, unwanted):
    """A front has no runtime, and the device process, until it loads a model, neither gRPC nor a runtime."""
    program = f"import sys, alignserve_server.{module}; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert unwanted.isdisjoint(done.stdout.split())
