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


_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"alignserve_server.{name}")
    print(name, *{"torch", "transformers"} & set(sys.modules))
"""


def test_imports_no_torch():
    """Parts of the server that do not run the model work without torch and transformers."""
    parts = [*TORCHLESS, "model.preprocessing.texts"]

    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS, *parts], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines() == parts


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
