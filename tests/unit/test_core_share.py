"""How many threads a forward is given."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from alignserve_server.model.core_share import CoreShare


@pytest.mark.parametrize(
    ("cores", "most", "expected"),
    [(4, 4, [4, 2, 1, 1, 1]), (2, 4, [2, 1, 1]), (16, 4, [4, 4, 4, 4, 3]), (1, 4, [1, 1])],
)
def test_forwards_that_run_at_once_share_the_cores(cores: int, most: int, expected: list[int]) -> None:
    """One alone gets all up to the most, and the more there are, the fewer the next one gets."""
    share = CoreShare(cores, most, machine_cores=cores, running_tasks=lambda: 1)

    with ExitStack() as running:
        threads = [running.enter_context(share.taken()) for _ in expected]

    assert threads == expected


def test_a_forward_that_ends_gives_its_cores_back() -> None:
    """The next one alone gets them all again, also after a failure."""
    share = CoreShare(2, most=4, machine_cores=2, running_tasks=lambda: 1)
    with pytest.raises(RuntimeError), share.taken():
        raise RuntimeError

    with share.taken() as threads:
        assert threads == 2


@pytest.mark.parametrize(
    ("running_tasks", "expected"), [(0, 4), (1, 4), (2, 3), (4, 1), (5, 1), (900, 1)], ids=str
)
def test_cores_of_others_are_left_to_them(running_tasks: int, expected: int) -> None:
    """A forward takes its own core and those that nobody uses when it begins."""
    share = CoreShare(4, most=4, machine_cores=4, running_tasks=lambda: running_tasks)

    with share.taken() as threads:
        assert threads == expected


def test_a_container_with_few_cores_looks_at_those_of_the_whole_machine() -> None:
    """Others who run beside it, on cores that it may not use, take none of its own."""
    share = CoreShare(2, most=4, machine_cores=64, running_tasks=lambda: 40)

    with share.taken() as threads:
        assert threads == 2


def test_the_machine_is_asked_by_default() -> None:
    """Whatever runs here now, a forward gets from one thread to all."""
    with CoreShare(4, most=4, machine_cores=4).taken() as threads:
        assert 1 <= threads <= 4
