"""The command `python -m tests.conformance`: builds drivers, runs all cases, and prints both matrices."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.conformance import builds, matrix
from tests.conformance.cases import FOLDER, Case, Cases, read_cases
from tests.conformance.certificates import make_certificates
from tests.conformance.clients import Client, fill_client, find_clients
from tests.conformance.columns import build, fill_column
from tests.conformance.deadline import Deadline
from tests.conformance.inputs import GOLDEN, PHOTOS, variables_of
from tests.conformance.languages import ROOT, WORK, Language, find_languages
from tests.conformance.matrix import Column
from tests.conformance.servers import RealServer, ServerError, Servers

# In continuous integration these must not be skipped.
REQUIRED_LANGUAGES = ("python", "go", "java", "node", "rust", "cpp", "ruby")
REQUIRED_CLIENTS = ("connect-web",)  # runs in Chromium

_RESULTS = FOLDER / "RESULTS.md"
_LAST_RESORT_SECONDS = 180.0
_HIDDEN = "ALIGNSERVE_"  # variables of the user's that clients and servers would obey


def main() -> int:
    """Runs the command; returns its exit code."""
    cases, languages, clients = read_cases(), find_languages(), find_clients()
    arguments = _parse(cases, languages, clients)
    if arguments.list:
        _list(cases, languages, clients)
        return 0
    for name in [name for name in os.environ if name.startswith(_HIDDEN)]:
        del os.environ[name]
    # A last resort: columns end at the deadline by themselves, unless a server hangs.
    faulthandler.dump_traceback_later(60 * arguments.minutes + _LAST_RESORT_SECONDS, exit=True)
    start, deadline = time.monotonic(), Deadline(60 * arguments.minutes)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _interrupt(deadline))
    if arguments.build:
        return _build(arguments.languages, deadline)
    columns, used = _filled(cases, arguments, deadline)
    _report(columns, used, arguments, time.monotonic() - start)
    return _exit_code(columns, used, arguments)


def _interrupt(deadline: Deadline) -> None:
    """Ends the run: no case starts any more, and drivers, servers and builds are killed."""
    deadline.expire()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _parse(cases: Cases, languages: Sequence[Language], clients: Sequence[Client]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Runs every case with every client library, and every client that is used unmodified.",
    )
    names = [*(each.key for each in languages), *(each.key for each in clients)]

    def known(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        if unknown := [name for name in chosen if name not in names]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(names)}")
        return chosen

    def matched(text: str) -> list[Case]:
        try:
            return cases.selected(text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    option = parser.add_argument
    option("--languages", type=known, metavar="NAME,…", help="languages (default: all; '' for none)")
    option("--clients", type=known, metavar="NAME,…", help="unmodified clients (default: all; '' for none)")
    option("--cases", type=matched, default=list(cases.cases), metavar="GLOB,…", help="cases (default: all)")
    option("--list", action="store_true", help="show languages, clients and cases, and end")
    option("--build", action="store_true", help="generate and build the code of the languages, and end")
    option("--jobs", type=int, default=4, metavar="N", help="columns at the same time (default: %(default)s)")
    option("--minutes", type=float, default=20.0, metavar="N", help="time limit (default: %(default)g)")
    option("--output", type=Path, default=WORK / "results", metavar="FOLDER", help="folder for results")
    option("--write", action="store_true", help=f"also write {_RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    arguments.is_complete = arguments.languages is None and arguments.clients is None
    arguments.languages = _chosen(arguments.languages, languages)
    arguments.clients = _chosen(arguments.clients, clients)
    return arguments


def _chosen(keys: Sequence[str] | None, known: Sequence[Any]) -> list[Any]:
    return [each for each in known if keys is None or each.key in keys]


def _list(cases: Cases, languages: Sequence[Language], clients: Sequence[Client]) -> None:
    for title, names in (
        ("languages", [f"{each.key}: {each.name}" for each in languages]),
        ("clients", [each.key for each in clients]),
        ("cases", [f"{case.name}: {case.title}" for case in cases.cases]),
    ):
        print(f"{title}:", *names, sep="\n  ")


def _build(languages: Sequence[Language], deadline: Deadline) -> int:
    """Generates the code that git has, and builds every client; returns the exit code."""
    has_failed = False
    for language in languages:
        say = _saying(language.key)
        try:
            build(language, [*language.generate, *language.build], say, deadline)
        except builds.Missing as reason:
            say(f"skipped: {reason}")
        except builds.BuildFailed as reason:
            say(f"failed: {reason}")
            has_failed = True
    return 1 if has_failed else 0


def _filled(
    cases: Cases, arguments: argparse.Namespace, deadline: Deadline
) -> tuple[list[Column], list[Column]]:
    """Returns the columns of languages and of unmodified clients."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-")))
        certificates = make_certificates(folder)
        servers = Servers(cases.servers, folder, certificates)
        stack.callback(servers.stop)
        variables = variables_of(certificates)
        pool = stack.enter_context(ThreadPoolExecutor(arguments.jobs, "column"))

        def language_column(language: Language) -> Column:
            with _of_column(servers, language.key) as own:
                say = _saying(language.key)
                return fill_column(language, arguments.cases, own, variables, golden, say, deadline)

        def client_column(client: Client) -> Column:
            try:
                given = _client_variables(servers, variables)
            except ServerError as error:
                return _failed_client(client, error)
            return fill_client(client, given, _saying(client.key), deadline)

        # The longest builds come first, so that no other column waits for them at the end.
        slowest_first = sorted(
            arguments.languages, key=lambda each: -each.build_seconds if each.build else 0.0
        )
        columns = {each.key: pool.submit(language_column, each) for each in slowest_first}
        used = {each.key: pool.submit(client_column, each) for each in arguments.clients}
        return _results(columns, arguments.languages), _results(used, arguments.clients)


def _results(futures: Mapping[str, Future[Column]], order: Sequence[Language | Client]) -> list[Column]:
    return [futures[each.key].result() for each in order]


@contextlib.contextmanager
def _of_column(servers: Servers, key: str) -> Iterator[Servers]:
    own = servers.of_column(key)
    try:
        yield own
    finally:
        own.stop()


def _failed_client(client: Client, error: Exception) -> Column:
    return Column(client.key, client.name, outcomes=[matrix.Outcome("server starts", "failed", str(error))])


def _client_variables(servers: Servers, certificates: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of scripts in `unmodified/`; its README documents the variables."""
    plain, protected = servers.get("open"), servers.get("protected")
    assert isinstance(plain, RealServer)
    assert isinstance(protected, RealServer)
    own = {
        "TARGET": f"127.0.0.1:{plain.port}",
        "HTTP": f"http://127.0.0.1:{plain.http_port}",
        "TLS_TARGET": f"127.0.0.1:{protected.port}",
        "TLS_HTTP": f"https://127.0.0.1:{protected.http_port}",
        "CA": certificates["ca"],
        "KEY": protected.variables["key_all"],
        "EMBED_KEY": protected.variables["key_embed"],
        "PHOTOS": str(PHOTOS),
        "PROTOS": str(ROOT / "protos"),
        "GOLDEN": str(GOLDEN),
    }
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, **{f"{_HIDDEN}{name}": value for name, value in own.items()}}


_printing = threading.Lock()


def _saying(key: str) -> Callable[[str], None]:
    start = time.monotonic()

    def say(text: str) -> None:
        with _printing:
            print(f"{time.monotonic() - start:6.1f} {key}: {text}", flush=True)

    return say


def _report(
    columns: Sequence[Column], used: Sequence[Column], arguments: argparse.Namespace, seconds: float
) -> None:
    titles = {case.name: case.title for case in arguments.cases}
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, {_distribution()}",
        "time": f"{seconds / 60:.1f} min",
    }
    text = matrix.document(columns, used, titles, facts)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.md").write_text(text, "utf-8")
    (arguments.output / "results.json").write_text(matrix.as_json(columns, used, facts), "utf-8")
    if arguments.write:
        _RESULTS.write_text(text, "utf-8")
    print(f"\n{text}")


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown"


def _exit_code(columns: Sequence[Column], used: Sequence[Column], arguments: argparse.Namespace) -> int:
    everything = [*columns, *used]
    counts = {verdict: sum(column.count(verdict) for column in everything) for verdict in matrix.MARKS}
    for column in everything:
        if column.skipped:
            print(f"SKIPPED {column.name}: {column.skipped}")
    absent: list[str] = []
    if os.environ.get("CI") == "true" and arguments.is_complete:
        absent = missing(columns, used)
        for key in absent:
            print(f"{key} must not be skipped with CI=true")
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["failed"] or absent else 0


def missing(columns: Sequence[Column], used: Sequence[Column]) -> list[str]:
    """Returns the columns that continuous integration requires and that are not there, or were skipped."""
    ran = {column.key for column in [*columns, *used] if not column.skipped}
    return [key for key in (*REQUIRED_LANGUAGES, *REQUIRED_CLIENTS) if key not in ran]


if __name__ == "__main__":
    raise SystemExit(main())
