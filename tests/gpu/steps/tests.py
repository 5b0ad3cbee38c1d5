"""The tests of the suite that need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.gpu.check import Check, CheckFailed
from tests.gpu.machine import ROOT

# A bare machine has other projects' plugins, for which our settings are not made.
_PLUGINS = ("-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider")
_OPTIONS = ("-o", "addopts=--import-mode=importlib", "-ra", "-v", "--durations=5")
_FILE = "tests/model/test_cuda.py"


def run(check: Check) -> None:
    """Runs them. Without a GPU they are skipped, which shows that pytest finds and imports them."""
    command = [sys.executable, "-m", "pytest", *_PLUGINS, *_OPTIONS, _FILE]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    last = "no output"
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:  # at once: if time runs out, the log has the tests that have ended
            print(line, end="", flush=True)
            last = line.strip("= \n") or last
    check.results.proved("Tests", {"file": _FILE, "result": last})
    if running.returncode:
        raise CheckFailed(last)
