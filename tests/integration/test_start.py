"""Unusual startup conditions: closed streams, inherited variables, no home, early signals."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.processes import BIN, free_port, is_listening, server_process, wait_until

SERVER = str(BIN / "alignserve-server")
_LONG: dict[str, Any] = {"marks": pytest.mark.long}
_SHORT = [((2,), "1"), ((0, 1, 2), "2")]
STREAMS = [
    pytest.param(closed, workers, **({} if (closed, workers) in _SHORT else _LONG))
    for workers in ("1", "2")
    for count in (1, 2, 3)
    for closed in itertools.combinations((0, 1, 2), count)
]

_CLOSING = """
import os, sys
for descriptor in map(int, sys.argv[1].split(",")):
    os.close(descriptor)
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def _started(*command: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("closed", "workers"), STREAMS, ids=str)
def test_a_server_without_standard_streams_stops_cleanly(closed: Sequence[int], workers: str) -> None:
    """Daemons may be started this way; no file of the server gets the number of a standard stream."""
    port = free_port()
    flags = [
        *("--checkpoint", "fake", "--metrics-listen", "none", "--drain-delay-seconds", "0"),
        *("--listen", f"127.0.0.1:{port}", "--workers", workers),
    ]
    program = [sys.executable, "-c", _CLOSING, ",".join(map(str, closed)), SERVER, *flags]

    with _started(*program, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: is_listening(port))
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)

    assert code == 0


_INTERRUPTED = """
import os, signal, sys
from alignserve_server.cli.main import main
name, number = sys.argv[1], int(sys.argv[2])

class Interrupting:
    def find_spec(self, module, path=None, target=None):
        if module == name:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Interrupting())
sys.argv[1:] = sys.argv[3:]
main()
"""


_INTERRUPTIONS = [
    ("pydantic", ["--checkpoint", "fake"], 0, signal.SIGINT),
    ("structlog", ["--checkpoint", "fake"], 0, signal.SIGTERM),
    ("grpc", ["--checkpoint", "fake"], 0, signal.SIGINT),
    ("grpc", ["check"], None, signal.SIGTERM),
    ("numpy", ["plan", "--p99", "1"], None, signal.SIGINT),
    ("pydantic", ["settings"], None, signal.SIGTERM),
]
_BY_OTHER_SIGNALS = [
    pytest.param(*others, {signal.SIGINT: signal.SIGTERM, signal.SIGTERM: signal.SIGINT}[number], **_LONG)
    for *others, number in _INTERRUPTIONS
]


@pytest.mark.parametrize(("module", "argv", "code", "number"), [*_INTERRUPTIONS, *_BY_OTHER_SIGNALS])
def test_a_signal_during_imports_ends_without_a_traceback(
    module: str, argv: list[str], code: int | None, number: signal.Signals
) -> None:
    """A server exits with 0, as at any time; an interrupted command exits with 130 or 143."""
    program = [sys.executable, "-c", _INTERRUPTED, module, str(int(number)), *argv]

    done = subprocess.run(program, capture_output=True, text=True, timeout=60)

    assert done.returncode == (128 + number if code is None else code)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("workers", "number"),
    [
        ("2", signal.SIGINT),
        pytest.param("1", signal.SIGINT, **_LONG),
        pytest.param("1", signal.SIGTERM, **_LONG),
        pytest.param("2", signal.SIGTERM, **_LONG),
    ],
    ids=str,
)
def test_a_signal_during_the_load_ends_without_a_traceback(
    tmp_path: Path, workers: str, number: signal.Signals
) -> None:
    """A slow load does not delay the exit, and the exit code is 0."""
    port = free_port()
    flags = [
        *("--listen", f"127.0.0.1:{port}", "--metrics-listen", "none", "--workers", workers),
        *("--runtime", "torch", "--device", "cpu"),
    ]

    with _started(SERVER, *flags, stderr=subprocess.PIPE) as process:
        wait_until(lambda: is_listening(port))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 0
    assert b"Traceback" not in errors
    assert b"startup_failed" not in errors


@pytest.mark.parametrize("workers", ["2", pytest.param("1", **_LONG)])
def test_another_servers_metrics_folder_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """Base images set the variables; nothing is written there, and the metrics page is complete."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        monkeypatch.setenv(name, str(tmp_path))

    with (
        server_process("--checkpoint", "fake", "--workers", workers) as server,
        urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as answer,
    ):
        page = answer.read().decode()

    assert "alignserve_lanes" in page
    assert list(tmp_path.iterdir()) == []


_HOMELESS = """
import os, sys
os.environ.pop("HOME", None)
os.environ.pop("XDG_CACHE_HOME", None)
from alignserve_server.model.align import default_cache_dir
if os.getuid() == 0:
    os.setuid(54321)
print(default_cache_dir())
"""


def test_a_user_without_a_home_has_a_cache_folder() -> None:
    """A container may run as any user id; the folder need not be writable."""
    done = subprocess.run([sys.executable, "-c", _HOMELESS], capture_output=True, text=True, timeout=60)

    assert done.stdout.strip() == "/.cache/alignserve", done.stderr
