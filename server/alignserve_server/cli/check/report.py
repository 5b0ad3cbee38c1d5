"""The result of a check: lines that start with ok, warn or FAIL, or one JSON object."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["ok", "warn", "FAIL"]


class CheckWarning(Exception):
    """Something is probably wrong, but the server starts."""


class CheckFailed(Exception):
    """Several things prevent a start; each argument says what one of them is, and what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        verdict: Only FAIL prevents a start.
        subject: The setting or the part of the deployment that was examined.
        text: The facts and, unless they are fine, the remedy.
        seconds: How long the check took.
    """

    verdict: Verdict
    subject: str
    text: str
    seconds: float


class Report:
    """The findings so far; as text, each is printed at once."""

    def __init__(self, *, is_json: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_json = is_json
        self._clock = clock
        self._start = clock()
        self.findings: list[Finding] = []

    @property
    def has_failed(self) -> bool:
        """Whether something prevents a start."""
        return any(finding.verdict == "FAIL" for finding in self.findings)

    def has_failed_in(self, subjects: Collection[str]) -> bool:
        """Whether one of these subjects prevents a start."""
        return any(one.verdict == "FAIL" and one.subject in subjects for one in self.findings)

    def add(self, verdict: Verdict, subject: str, text: str, seconds: float = 0.0) -> None:
        """Adds a finding."""
        finding = Finding(verdict, subject, " ".join(text.split()), round(seconds, 3))
        self.findings.append(finding)
        if not self._is_json:
            print(f"{finding.verdict:4}  {finding.subject:18}  {finding.text}", flush=True)

    def run(self, subject: str, check: Callable[[], str]) -> bool:
        """Runs a check, which returns what it found or raises; returns whether a start is still possible."""
        start = self._clock()
        verdict: Verdict = "ok"
        texts: Sequence[object]
        try:
            texts = [check()]
        except CheckWarning as warning:
            texts, verdict = [warning], "warn"
        except CheckFailed as failure:
            texts, verdict = failure.args, "FAIL"
        except Exception as error:  # noqa: BLE001 — anything that prevents a start
            texts, verdict = [str(error) or type(error).__name__], "FAIL"
        seconds = self._clock() - start
        for text in texts:
            self.add(verdict, subject, str(text), seconds)
        return verdict != "FAIL"

    def end(self) -> int:
        """Prints the summary, or the JSON; returns the exit code."""
        counts = Counter(finding.verdict for finding in self.findings)
        seconds = self._clock() - self._start
        if self._is_json:
            result = {
                "starts": not self.has_failed,
                "seconds": round(seconds, 3),
                "findings": [asdict(finding) for finding in self.findings],
            }
            print(json.dumps(result, indent=2, ensure_ascii=False))
        else:
            found = f"{counts['ok']} ok, {counts['warn']} warn, {counts['FAIL']} FAIL"
            print(f"{found}; {seconds:.1f} s", flush=True)
        return int(self.has_failed)
