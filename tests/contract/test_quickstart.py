"""`make run`, as a new user sees it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys

import pytest
from alignserve import Client

from deploy.quickstart import main
from tests.processes import ROOT, free_port, run

COMMAND = [sys.executable, "-m", "deploy.quickstart"]


def test_it_answers_and_serves_until_it_is_interrupted() -> None:
    """It shows a classified photo, a table and the next commands, and Ctrl-C ends it cleanly."""
    port = free_port()
    command = [*COMMAND, "--port", str(port), "--metrics-port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "client.classify(" in line:
                break
        with Client(f"localhost:{port}") as client:
            still_serves = client.is_ready()

        process.send_signal(signal.SIGINT)
        process.communicate()

    labels = [line.split()[0] for line in lines if "0." in line and "server is ready" not in line]
    assert labels[0] == "cat"
    assert any(f"--server localhost:{port} info" in line for line in lines)
    assert still_serves
    assert process.returncode == 0


def test_a_taken_port_differs_from_a_failed_server() -> None:
    """It does not start, ignores the other program on the port, and suggests another port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        result = run(*COMMAND, "--port", str(port), "--metrics-port", str(free_port()))

    assert result.returncode == 1
    assert f"port {port} cannot be used" in result.stderr
    assert "make run PORT=" in result.stderr


def test_both_taken_ports_are_reported_together() -> None:
    """One suggested command names two free ports: a second `make run` finds both in use."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        port, metrics_port = first.getsockname()[1], second.getsockname()[1]

        result = run(*COMMAND, "--port", str(port), "--metrics-port", str(metrics_port))

    told = re.search(r"make run PORT=(\d+) METRICS_PORT=(\d+)", result.stderr)
    assert result.returncode == 1
    assert told is not None
    assert not {str(port), str(metrics_port)} & set(told.groups())


def test_an_invalid_port_is_wrong_usage() -> None:
    """It is refused without a traceback."""
    result = run(*COMMAND, "--port=99999")

    assert result.returncode == 2
    assert "'99999' is not a port from 1 to 65535" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("port", ["0", "-1", "x"])
def test_what_is_no_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As wrong usage, whatever is wrong with it."""
    with pytest.raises(SystemExit) as exited:
        main([f"--port={port}"])

    assert exited.value.code == 2
    assert f"'{port}' is not a port from 1 to 65535" in capsys.readouterr().err


def test_a_server_that_cannot_start_ends_it() -> None:
    """The server's reason is shown, and its exit code passed on."""
    ports = ("--port", str(free_port()), "--metrics-port", str(free_port()))

    result = run(*COMMAND, *ports, "--checkpoint", "/nowhere/at/all")

    assert result.returncode == 1
    assert "/nowhere/at/all" in result.stderr


@pytest.mark.long
def test_its_output_may_be_closed() -> None:
    """It also serves with closed standard streams, as some service managers leave them."""
    port = free_port()
    command = [*COMMAND, "--port", str(port), "--metrics-port", str(free_port())]
    with subprocess.Popen(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *command], cwd=ROOT) as process:
        with Client(f"localhost:{port}") as client:
            client.wait_until_ready(60)

        process.send_signal(signal.SIGINT)

    assert process.returncode == 0


def test_ctrl_c_during_imports_shows_no_traceback() -> None:
    """Heavy imports are deferred: they would delay serving by half a second."""
    command = [sys.executable, "-X", "importtime", *COMMAND[1:]]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.endswith(" numpy\n"):  # imported by the client
                break

        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()

    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in rest
