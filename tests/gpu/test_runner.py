"""Steps run in isolation and within their time limits; no step here imports torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest

from tests.gpu.plan import Step
from tests.gpu.runner import Outcome, Runner
from tests.processes import wait_until

Check: TypeAlias = Callable[..., dict[str, Outcome]]

PASSES, FAILS, CRASHES = "pass", "raise SystemExit(3)", "import os; os.abort()"
HANGS = "import signal; signal.pause()"
STARTS_A_CHILD = """\
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
with open(sys.argv[1] + ".draft", "w") as file:
    file.write(str(child.pid))
os.rename(file.name, sys.argv[1])
child.wait()"""
WAITS_FOR_A_FILE = """\
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)"""
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Runs steps, given as programs by name, and returns their outcomes in order of completion."""

    def run(programs: Mapping[str, str], *steps: Step, limit: float = 600.0) -> dict[str, Outcome]:
        def command(step: Step) -> list[str]:
            return [sys.executable, "-S", "-c", programs[step.name], str(tmp_path / step.name)]

        with (tmp_path / "log.txt").open("wb") as log:
            runner = Runner(command, log, limit, dict(os.environ))
            return {
                outcome.step: outcome for outcome in runner.run(steps or [_step(name) for name in programs])
            }

    return run


def _step(name: str) -> Step:
    return Step(name, least_seconds=10, most_seconds=60)


def _verdicts(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    return {name: outcome.verdict for name, outcome in outcomes.items()}


def test_a_step_that_crashes_or_fails_does_not_stop_the_rest(check: Check) -> None:
    """The next step runs, and the reason is recorded."""
    outcomes = check({"crashes": CRASHES, "fails": FAILS, "passes": PASSES})

    assert _verdicts(outcomes) == {"crashes": "failed", "fails": "failed", "passes": "passed"}
    assert outcomes["crashes"].reason == "ended by SIGABRT"
    assert outcomes["fails"].reason == "exit code 3"


def test_a_step_that_hangs_is_ended(check: Check) -> None:
    """It is ended at its time limit, and the next step runs."""
    outcomes = check(
        {"hangs": HANGS, "passes": PASSES}, replace(_step("hangs"), most_seconds=0.5), _step("passes")
    )

    assert _verdicts(outcomes) == {"hangs": "timed out", "passes": "passed"}
    assert outcomes["hangs"].reason == "after 0.5 s"


def test_the_children_of_a_step_end_with_it(tmp_path: Path) -> None:
    """This holds for an interrupted run too: no server or load generator survives."""
    file = tmp_path / "child"
    programs = {"starts": STARTS_A_CHILD, "waits": WAITS_FOR_A_FILE}
    with (tmp_path / "log.txt").open("wb") as log:
        runner = Runner(
            lambda step: [sys.executable, "-S", "-c", programs[step.name], str(file)],
            log,
            600,
            dict(os.environ),
        )
        run = runner.run([replace(_step("starts"), is_background=True), _step("waits")])
        assert next(run).verdict == "passed"

        run.close()

    child = int(file.read_text())
    wait_until(lambda: has_ended(child))  # the runner does not wait for grandchildren that it killed


def has_ended(process: int) -> bool:
    """Returns whether a process has ended, also if its parent has not asked for its exit code."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_step_that_ignores_sigterm_is_killed(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL follows SIGTERM."""
    monkeypatch.setattr("tests.gpu.runner._TERMINATION_SECONDS", 0.2)

    outcomes = check({"stubborn": IGNORES_SIGTERM}, replace(_step("stubborn"), most_seconds=0.5))

    assert _verdicts(outcomes) == {"stubborn": "timed out"}


def test_a_step_without_enough_time_left_is_not_run(check: Check) -> None:
    """Its minimum time counts, not its maximum; a shorter step after it still runs."""
    long, short = _step("long"), replace(_step("short"), least_seconds=1)

    outcomes = check({"long": PASSES, "short": PASSES}, long, short, limit=8.0)

    assert _verdicts(outcomes) == {"long": "not run", "short": "passed"}
    assert outcomes["long"].reason == "8 s left, 10 needed"


def test_a_background_step_is_awaited_by_steps_that_need_it(check: Check, tmp_path: Path) -> None:
    """The file that it writes exists when the next step starts."""
    background = replace(_step("writes"), is_background=True)
    reads = f"import os; raise SystemExit(not os.path.exists({str(tmp_path / 'writes')!r}))"

    outcomes = check(
        {"writes": "import sys; open(sys.argv[1], 'w')", "reads": reads},
        background,
        replace(_step("reads"), after="writes"),
    )

    assert _verdicts(outcomes) == {"reads": "passed", "writes": "passed"}


@pytest.mark.parametrize(("program", "reason"), [(FAILS, "writes: failed"), (HANGS, "writes: timed out")])
def test_a_step_that_needs_a_failed_one_is_not_run(check: Check, program: str, reason: str) -> None:
    """The reason names the failed step."""
    background = replace(_step("writes"), is_background=True, most_seconds=1.0)

    outcomes = check(
        {"writes": program, "reads": PASSES, "other": PASSES},
        background,
        replace(_step("reads"), after="writes"),
        _step("other"),
    )

    assert outcomes["reads"] == Outcome("reads", "not run", reason=reason)
    assert outcomes["other"].verdict == "passed"
