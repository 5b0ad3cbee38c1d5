"""Fills the column of a language: builds its driver, and runs the cases one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.conformance import builds
from tests.conformance.cases import Case
from tests.conformance.deadline import Deadline
from tests.conformance.driver import Driver, DriverError
from tests.conformance.expectations import Golden
from tests.conformance.languages import Command, Language
from tests.conformance.matrix import Column, Outcome
from tests.conformance.running import CaseFailed, run_case
from tests.conformance.servers import ServerError, Servers

Say = Callable[[str], None]


def fill_column(
    language: Language,
    cases: Sequence[Case],
    servers: Servers,
    variables: Mapping[str, Any],
    golden: Golden,
    say: Say,
    deadline: Deadline,
) -> Column:
    """Builds a driver and runs every case with it; whatever goes wrong is in the column.

    Args:
        language: What to build and run.
        cases: What to run.
        servers: Those of this column.
        variables: Values for `${name}` in cases.
        golden: Vectors to compare with.
        say: Prints a line of progress.
        deadline: Cases that would start later have failed.
    """
    column = Column(language.key, language.name)
    try:
        build(language, language.build, say, deadline)
    except builds.Missing as missing:
        column.skipped = str(missing)
        say(f"skipped: {missing}")
        column.outcomes = [Outcome(case.name, "skipped", str(missing)) for case in cases]
        return column
    except builds.BuildFailed as failed:
        say(f"does not build: {failed}")
        column.outcomes = [Outcome(case.name, "failed", f"does not build: {failed}") for case in cases]
        return column
    runs = _Runs(language, column, servers, variables, golden)
    for case in cases:
        if deadline.is_over:
            outcome = Outcome(case.name, "failed", "the time for all cases is over")
        else:
            outcome = runs.outcome(case)
        column.outcomes.append(outcome)
        say(f"{outcome.verdict} {case.name}, {outcome.seconds:.1f} s {outcome.detail}".rstrip())
    if problem := runs.stop():
        say(problem)
        column.outcomes[-1] = Outcome(column.outcomes[-1].name, "failed", problem)
    return column


def build(language: Language, commands: Sequence[Command], say: Say, deadline: Deadline) -> None:
    """Installs what a language needs, and runs commands of its manifest.

    Raises:
        Missing: This machine lacks a tool or a package.
        BuildFailed: A command failed, or all took too long.
    """
    builds.install(language.apt, say)
    builds.require(language.tools)
    if not commands:
        return
    say("builds")
    start = time.monotonic()
    language.work.mkdir(parents=True, exist_ok=True)
    seconds = deadline.remaining(language.build_seconds)
    builds.build(commands, language.folder, seconds, language.environment)
    say(f"built in {time.monotonic() - start:.0f} s")


class _Runs:
    """The driver in use: a new one after each that broke."""

    def __init__(
        self,
        language: Language,
        column: Column,
        servers: Servers,
        variables: Mapping[str, Any],
        golden: Golden,
    ) -> None:
        self._language = language
        self._column = column
        self._servers = servers
        self._variables = variables
        self._golden = golden
        self._driver: Driver | None = None

    def outcome(self, case: Case) -> Outcome:
        """Runs a case."""
        start = time.monotonic()

        def failed(error: Exception) -> Outcome:
            return Outcome(case.name, "failed", str(error), time.monotonic() - start)

        try:
            server = self._servers.get(case.server)
            run_case(case, self._running(), server, self._variables, self._golden)
        except CaseFailed as error:
            self._kill()  # what it is in the middle of must not disturb the next case
            return failed(error)
        except DriverError as error:
            self._driver = None
            self._servers.discard(case.server)
            return failed(error)
        except ServerError as error:
            self._kill()
            self._servers.discard(case.server)
            return failed(error)
        return Outcome(case.name, "passed", "", time.monotonic() - start)

    def stop(self) -> str:
        """Ends the driver; returns what was wrong with its end, if anything."""
        driver, self._driver = self._driver, None
        try:
            if driver is not None:
                driver.stop()
        except DriverError as error:
            return str(error)
        return ""

    def _running(self) -> Driver:
        if self._driver is None:
            self._driver = Driver(self._language.run, self._language.environment)
            self._column.versions = self._driver.hello["versions"]
        return self._driver

    def _kill(self) -> None:
        if self._driver is not None:
            self._driver.kill()
            self._driver = None
