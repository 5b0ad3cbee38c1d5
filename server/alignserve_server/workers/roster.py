"""The processes of a server, by name. A worker is one process, or a device process and its fronts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a process does."""

    WHOLE = "whole"  # serves calls with its own model
    DEVICE = "device"  # runs a model for its group's fronts
    FRONT = "front"  # takes calls for its group's device process


@dataclass(frozen=True, slots=True)
class Member:
    """A process, or after a restart the next one."""

    name: int | str  # in logs and metrics
    role: Role
    group: int  # the number of the worker that it is, or is a part of
    caller_number: int = 0  # the number of one that takes calls among all of those

    @property
    def takes_calls(self) -> bool:
        """Whether it listens on the server's ports."""
        return self.role is not Role.DEVICE


def roster(workers: int, front_processes: int) -> list[Member]:
    """Returns the processes in the order of their start."""
    if not front_processes:
        return [Member(number, Role.WHOLE, number, number) for number in range(workers)]
    return [member for group in range(workers) for member in _group(workers, front_processes, group)]


def _group(workers: int, front_processes: int, group: int) -> list[Member]:
    prefix = f"{group}-" if workers > 1 else ""
    first = group * front_processes
    fronts = [
        Member(f"{prefix}front-{number}", Role.FRONT, group, first + number)
        for number in range(front_processes)
    ]
    return [Member(f"{prefix}device", Role.DEVICE, group), *fronts]
