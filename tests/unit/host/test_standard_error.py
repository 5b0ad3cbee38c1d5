"""Standard error of a server process: open, and never blocking."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from alignserve_server.host.standard_error import keep_standard_error_from_blocking

from tests.processes import BIN


def _run(code: str, **options) -> subprocess.CompletedProcess[str]:
    """Runs Python in another process, since the code changes the standard streams."""
    return subprocess.run([sys.executable, "-c", code], text=True, check=False, timeout=60, **options)


_CLOSED = """
import os, sys
for descriptor in (0, 1, 2):
    os.close(descriptor)
os.execv(sys.executable, [sys.executable, "-c", '''
import socket
from pathlib import Path
from alignserve_server.host.standard_error import open_standard_streams
open_standard_streams()
next_one = socket.socket().fileno()
print("out"); print("err", file=__import__("sys").stderr)
Path("report").write_text(str(next_one))
'''])
"""


def test_no_socket_becomes_standard_error(tmp_path: Path) -> None:
    """If all standard streams were closed, one would, and libraries would write to a connection."""
    outcome = _run(_CLOSED, cwd=tmp_path)

    assert outcome.returncode == 0
    assert int((tmp_path / "report").read_text()) > 2


_FULL_PIPE = """
import os
from alignserve_server.host.standard_error import keep_standard_error_from_blocking

from tests.processes import BIN
before = os.dup(2)
keep_standard_error_from_blocking()
try:
    while True:
        os.write(2, bytes(1000))
except BlockingIOError:
    pass
print(os.get_blocking(before), os.get_blocking(2))
"""


def test_output_of_libraries_does_not_block() -> None:
    """It is lost if it does not fit. The mode of the pipe is unchanged for processes that share it."""
    reading, writing = os.pipe()

    outcome = _run(_FULL_PIPE, stdout=subprocess.PIPE, stderr=writing)

    os.close(reading)
    os.close(writing)
    assert outcome.stdout.split() == ["True", "False"]


def test_output_to_a_file_is_appended(tmp_path: Path) -> None:
    """If it was reopened, it would be overwritten from the beginning."""
    path = tmp_path / "log"
    path.write_text("earlier\n")
    code = """
import os
from alignserve_server.host.standard_error import keep_standard_error_from_blocking

from tests.processes import BIN
keep_standard_error_from_blocking()
os.write(2, b"later")
"""

    with path.open("a") as log:
        _run(code, stderr=log)

    assert path.read_text() == "earlier\nlater"


_STRAY = """
import logging, sys, threading, warnings
from alignserve_server.observability.logs import configure_logs
from alignserve_server.host.standard_error import keep_standard_error_from_blocking

from tests.processes import BIN
configure_logs("info", "json")
keep_standard_error_from_blocking()

class Unlucky:
    def __del__(self):
        raise ValueError("in a finalizer")

warnings.warn("of a library")
Unlucky()
thread = threading.Thread(target=lambda: 1 // 0)
thread.start()
thread.join()
logging.shutdown()
"""


def test_output_of_python_is_logged() -> None:
    """Warnings, and errors in threads and finalizers, do not wait for a reader."""
    outcome = _run(_STRAY, stderr=subprocess.PIPE)

    warning, unraisable, thread = map(json.loads, outcome.stderr.splitlines())
    assert "of a library" in warning["event"]
    assert unraisable["exception"][0]["exc_value"] == "in a finalizer"
    assert thread["exception"][0]["exc_type"] == "ZeroDivisionError"


@pytest.mark.parametrize(("set_to", "expected"), [(None, "NONE"), ("debug", "debug")])
def test_grpc_logs_nothing_unless_configured(set_to: str | None, expected: str) -> None:
    """Anyone can cause a line for each handshake. The level can still be raised."""
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    if set_to is not None:
        environment["GRPC_VERBOSITY"] = set_to
    code = f"""
import os
from {keep_standard_error_from_blocking.__module__} import keep_standard_error_from_blocking
keep_standard_error_from_blocking()
print(os.environ["GRPC_VERBOSITY"])
"""

    outcome = _run(code, env=environment, stdout=subprocess.PIPE)

    assert outcome.stdout.strip() == expected


def test_grpc_writes_no_lines_of_its_own() -> None:
    """Even if a port is in use, standard error contains only lines of JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ["--checkpoint", "fake", "--metrics-listen", "none", "--listen", listen]

        done = subprocess.run(
            [BIN / "alignserve-server", *flags], env=environment, capture_output=True, text=True, check=False
        )

    assert done.returncode == 1
    assert "startup_failed" in [json.loads(line)["event"] for line in done.stderr.splitlines()]


@pytest.mark.parametrize("command", ["settings", "check"])
def test_characters_that_the_terminal_lacks_are_escaped(command: str) -> None:
    """A path in another script, or with bytes that are not text, is shown as far as possible."""
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "ALIGNSERVE_CHECKPOINT": "Modèle-\udcff",
        "ALIGNSERVE_LISTEN": "127.0.0.1:0",
        "ALIGNSERVE_METRICS_LISTEN": "none",
    }

    outcome = subprocess.run(
        [BIN / "alignserve-server", command], env=environment, capture_output=True, text=True, check=False
    )

    assert "Mod\\xe8le" in outcome.stdout
    assert "Traceback" not in outcome.stderr
