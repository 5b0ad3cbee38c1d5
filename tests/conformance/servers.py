"""The servers that cases talk to: the fake server and the real one, each a process.

A column has its own servers, except those marked `shared`, which all columns use. They start when the first
case needs them, and end with their column.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

from alignserve_server.access.keys import Scope, changed_keys, new_key

from tests.conformance.certificates import Certificates
from tests.processes import ROOT, ServerProcess, server_process

_REAL = (sys.executable, "-m", "alignserve_server")
_FAKE = (sys.executable, "-m", "alignserve.testing")
_END_SECONDS = 10.0


class ServerError(Exception):
    """A server did not start, or refused a call of its script."""


class CaseServer(Protocol):
    """A running server."""

    port: int
    variables: Mapping[str, Any]  # what cases may refer to by `${name}`

    def prepare(self) -> None:
        """Makes it as it was at its start, for another case."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Calls a method of the fake server."""

    def restart(self, *, kill: bool) -> None:
        """Ends the process, with SIGTERM or SIGKILL, and starts another one on the same port."""

    def stop(self) -> None:
        """Ends the process."""


class FakeServer:
    """The fake server, scripted through its standard input."""

    def __init__(self, flags: Sequence[str]) -> None:
        self.variables: Mapping[str, Any] = {}
        self._process = subprocess.Popen(
            [*_FAKE, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.port = int(self._read()["target"].rpartition(":")[2])

    def prepare(self) -> None:
        self.call("reset", {})

    def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"call": name, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ServerError(f"the fake server has ended: {error}") from error
        answer = self._read()
        if "error" in answer:
            raise ServerError(f"fake server: {name}: {answer['error']}")
        return answer["ok"]

    def restart(self, *, kill: bool) -> None:
        raise ServerError("the fake server restarts by the call `restart`")

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # it may have ended
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise ServerError(f"the fake server ended with {self._process.wait()}")
        return json.loads(line)


class RealServer:
    """alignserve-server."""

    def __init__(self, flags: Sequence[str], variables: Mapping[str, Any]) -> None:
        self.variables = variables
        self._flags = flags
        self._stack = ExitStack()
        self._process: ServerProcess
        self.port = 0
        self.http_port = 0  # without --http-listen
        self._start("127.0.0.1:0")

    def prepare(self) -> None:
        """Does nothing: the real server keeps no state between cases."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        raise ServerError(f"the real server has no script: {name}")

    def restart(self, *, kill: bool) -> None:
        if kill:
            self._process.process.kill()
        self._stack.close()
        self._start(f"127.0.0.1:{self.port}")

    def stop(self) -> None:
        self._stack.close()

    def _start(self, listen: str) -> None:
        try:
            self._process = self._stack.enter_context(
                server_process(*self._flags, program=_REAL, listen=listen)
            )
        except AssertionError as error:
            raise ServerError(f"the server did not start: {error}") from error
        self.port = self._process.port
        self.http_port = self._process.http_port


class Servers:
    """Starts the servers of a file of cases, by name."""

    def __init__(
        self,
        definitions: Mapping[str, Mapping[str, Any]],
        folder: Path,
        certificates: Certificates,
        parent: Servers | None = None,
    ) -> None:
        """`parent` keeps the servers that are shared; `folder` is for files of keys."""
        self._definitions = definitions
        self._folder = folder
        self._certificates = certificates
        self._parent = parent
        self._running: dict[str, CaseServer] = {}
        self._lock = threading.Lock()

    def of_column(self, name: str) -> Servers:
        """Returns the servers of one column."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return Servers(self._definitions, folder, self._certificates, self)

    def get(self, name: str) -> CaseServer:
        """Returns a server, ready for a case.

        Raises:
            ServerError: It does not start.
        """
        definition = self._definitions[name]
        if self._parent is not None and definition.get("shared"):
            return self._parent.get(name)
        with self._lock:
            if name not in self._running:
                self._running[name] = self._started(name, definition)
            server = self._running[name]
            server.prepare()
        return server

    def discard(self, name: str) -> None:
        """Ends a server that may no longer answer; the next case starts another one."""
        with self._lock:
            if server := self._running.pop(name, None):
                server.stop()

    def stop(self) -> None:
        """Ends every server."""
        for name in list(self._running):
            self.discard(name)

    def _started(self, name: str, definition: Mapping[str, Any]) -> CaseServer:
        made = self._certificates
        flags = [str(flag) for flag in definition.get("flags", ())]
        if definition.get("tls"):
            flags += ["--tls-certificate", str(made.server), "--tls-key", str(made.server_key)]
        if definition.get("client_certificates"):
            flags += ["--tls-client-ca", str(made.ca)]
        if definition["program"] == "fake":
            return FakeServer(flags)
        keys, more = self._keys(name, definition.get("keys", {}))
        return RealServer([*flags, *more], keys)

    def _keys(self, name: str, wanted: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
        """Creates API keys; returns them as variables `key_NAME`, and the server's flags."""
        if not wanted:
            return {}, []
        path = self._folder / f"{name}.json"
        variables = {}
        with changed_keys(path) as keys:
            for key, limits in wanted.items():
                scopes = frozenset(Scope(scope) for scope in limits.get("scopes", ("embed", "classify")))
                rate = limits.get("max_requests_per_second")
                variables[f"key_{key}"], keys[key] = new_key(key, scopes, max_requests_per_second=rate)
        return variables, ["--api-keys-file", str(path)]
