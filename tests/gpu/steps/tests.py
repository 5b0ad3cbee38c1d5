"""The tests of the suite that need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.gpu.check import Check, CheckFailed
from tests.gpu.machine import ROOT

# A bare machine has other projects' plugins, for which our settings are not made.
_PLUGINS = ("-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider")
_OPTIONS = ("-o", "addopts=--import-mode=importlib", "-ra", "-q", "--durations=5")
_FILE = "tests/model/test_cuda.py"


def run(check: Check) -> None:
    """Runs them. Without a GPU they are skipped, which shows that pytest finds and imports them."""
    command = [sys.executable, "-m", "pytest", *_PLUGINS, *_OPTIONS, _FILE]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "no output"
    check.results.proved("Tests", {"file": _FILE, "result": last.strip("= ")})
    if done.returncode:
        raise CheckFailed(last)
