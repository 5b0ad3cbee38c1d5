"""The steps of the check in order, with their time limits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the check, in its own process.

    Attributes:
        name: Up to the first space, the name of its module in `tests.gpu.steps`.
        least_seconds: The step is not started if less time is left.
        most_seconds: The step is ended after this time.
        after: A background step that must have succeeded.
        is_background: Whether other steps run at the same time.
    """

    name: str
    least_seconds: float
    most_seconds: float
    after: str | None = None
    is_background: bool = False


STEPS = (
    Step(CHECKPOINT, 30, 120, is_background=True),
    Step("ceilings", 20, 40),
    Step("model", 60, 150, after=CHECKPOINT),
    Step("serve", 60, 110, after=CHECKPOINT),
    Step("fronts", 40, 90, after=CHECKPOINT),
    Step("plain", 20, 35, after=CHECKPOINT),
    Step("profile", 20, 35, after=CHECKPOINT),
    Step("tests", 40, 130),
    Step("decode", 10, 15, after=CHECKPOINT),
    Step("attention", 15, 30),
    Step("startup", 30, 60, after=CHECKPOINT),
    Step("variants", 25, 60, after=CHECKPOINT),
    Step("compiled", 60, 170, after=CHECKPOINT),
)


def selected(names: Collection[str], steps: Sequence[Step] = STEPS) -> list[Step]:
    """Returns the steps with these names and those they come after; without names, all steps.

    Raises:
        ValueError: No step has one of the names.
    """
    if unknown := set(names) - {module_of(step.name) for step in steps}:
        known = ", ".join(module_of(step.name) for step in steps)
        raise ValueError(f"no step {', '.join(sorted(unknown))}; there are {known}")
    chosen = [step for step in steps if not names or module_of(step.name) in names]
    needed = {step.after for step in chosen}
    return [step for step in steps if step in chosen or step.name in needed]


def patient(steps: Sequence[Step], factor: float) -> list[Step]:
    """Returns the steps with longer limits, so that on a busy machine only steps that hang are ended."""
    return [replace(step, most_seconds=factor * step.most_seconds) for step in steps]


def module_of(name: str) -> str:
    """Returns the module of a step in `tests.gpu.steps`."""
    return name.split()[0]
