"""Runs steps one after the other, each in its own process and within its time limit.

A step that crashes or hangs loses only its own results. Its child processes end with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Literal, TypeAlias

from tests.gpu.plan import Step

Verdict: TypeAlias = Literal["passed", "failed", "timed out", "not run"]
Command: TypeAlias = Callable[[Step], Sequence[str]]

_RESERVE_SECONDS = 3.0  # for the summary
_TERMINATION_SECONDS = 5.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a step."""

    step: str
    verdict: Verdict
    seconds: float | None = None
    reason: str = ""


@dataclass
class Runner:
    """Runs the steps of one check.

    Attributes:
        command: Returns the command line of a step.
        log: Receives the output of all steps.
        limit_seconds: The total limit of all steps.
        environment: Of every step.
    """

    command: Command
    log: IO[bytes]
    limit_seconds: float
    environment: dict[str, str]
    _background: dict[str, _Running] = field(default_factory=dict, init=False)

    def run(self, steps: Sequence[Step]) -> Generator[Outcome, None, None]:
        """Runs the steps and yields their outcomes, background steps last. Closing this ends them."""
        end = time.monotonic() + self.limit_seconds
        with self._ending_background():
            for step in steps:
                outcome = self._run(step, end)
                if outcome is not None:
                    yield outcome
            for running in self._background.values():
                yield running.outcome()

    def _run(self, step: Step, end: float) -> Outcome | None:
        """Runs a step; returns None if it now runs in the background."""
        if step.after is not None and (reason := self._lack(step.after)):
            return Outcome(step.name, "not run", reason=reason)
        left = end - time.monotonic()
        if left < step.least_seconds:
            return Outcome(step.name, "not run", reason=f"{left:.0f} s left, {step.least_seconds:.0f} needed")
        running = _Running(step, self._start(step), min(left - _RESERVE_SECONDS, step.most_seconds))
        if step.is_background:
            self._background[step.name] = running
            return None
        with running.ending():
            return running.outcome()

    def _lack(self, name: str) -> str:
        """Waits for a background step; returns why steps after it cannot run, or an empty string."""
        running = self._background.get(name)
        verdict = running.outcome().verdict if running else "not run"
        return "" if verdict == "passed" else f"{name}: {verdict}"

    def _start(self, step: Step) -> subprocess.Popen[bytes]:
        self.log.write(f"\n=== {step.name}\n".encode())
        self.log.flush()
        return subprocess.Popen(
            list(self.command(step)),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            start_new_session=True,  # a process group, to be ended as a whole
        )

    @contextmanager
    def _ending_background(self) -> Iterator[None]:
        try:
            yield
        finally:
            for running in self._background.values():
                running.end()


class _Running:
    """The process of a step, until its outcome is known."""

    def __init__(self, step: Step, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._step, self._process = step, process
        self._begin, self._seconds = time.monotonic(), max(0.1, seconds)
        self._outcome: Outcome | None = None

    def outcome(self) -> Outcome:
        """Waits until the step has ended, or ends it at its limit."""
        if self._outcome is None:
            self._outcome = self._wait()
        return self._outcome

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Ends the step at the end of the block, however the block ends."""
        try:
            yield
        finally:
            self.end()

    def end(self) -> None:
        """Ends the process and its child processes."""
        if self._signal(signal.SIGTERM):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_TERMINATION_SECONDS)
            self._signal(signal.SIGKILL)
        self._process.wait()

    def _wait(self) -> Outcome:
        name, left = self._step.name, self._seconds - (time.monotonic() - self._begin)
        try:
            code = self._process.wait(max(0.1, left))
        except subprocess.TimeoutExpired:
            self.end()
            return Outcome(name, "timed out", self._elapsed, f"after {self._seconds:.3g} s")
        if code:
            return Outcome(name, "failed", self._elapsed, _reason(code))
        return Outcome(name, "passed", self._elapsed)

    @property
    def _elapsed(self) -> float | None:
        """The seconds since the start; None in the background, where the step may have ended earlier."""
        return None if self._step.is_background else time.monotonic() - self._begin

    def _signal(self, number: signal.Signals) -> bool:
        """Returns whether any process of the group was left to receive the signal."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True


def _reason(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
