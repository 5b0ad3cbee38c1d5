"""How long property tests search, how workers share tests, and what no test may leave to the next.

Profiles of hypothesis: `short` for `make test` and `long` for `make test-all` try the same cases each time;
`endless` tries new ones each time (`--hypothesis-profile endless --timeout 0`).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.sharing import Scheduling, choose_torch_worker, is_left_to_another, turn

# Servers that tests start run on the CPU, also on a machine with a GPU; tests of a GPU name it.
os.environ.setdefault("ALIGNSERVE_DEVICE", "cpu")

# A shell ignores SIGINT for what it runs in the background, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU, Triton's kernels run in its interpreter. It reads this when their modules are imported.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

_SLOW = [HealthCheck.too_slow]  # a step waits for threads, so its time says nothing about the strategies

settings.register_profile(
    "short",
    derandomize=True,
    deadline=None,
    max_examples=20,
    print_blob=True,
    stateful_step_count=40,
    suppress_health_check=_SLOW,
)
settings.register_profile("long", settings.get_profile("short"), max_examples=2000)
settings.register_profile(
    "endless",
    deadline=None,
    max_examples=10000,
    print_blob=True,
    stateful_step_count=100,
    suppress_health_check=_SLOW,
)
settings.load_profile("short")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the shape of the servers of tests/integration: their own model, or a device behind fronts."""
    parser.addoption("--shape", choices=("whole", "fronts"), default="whole")


def pytest_configure(config: pytest.Config) -> None:
    """Ends the run when a worker crashes: pytest-xdist would give the crashing test to the next worker.

    It reads the option before it makes the scheduler.
    """
    config.option.maxworkerrestart = "0"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Shares the tests as `tests.sharing` says."""
    config.option.loadscopereorder = False  # keeps the order of `pytest_collection_modifyitems`
    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Chooses the worker for the tests that need torch."""
    choose_torch_worker(node)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collects in a worker only what it may run."""
    is_ignored = is_left_to_another(config, collection_path.relative_to(config.rootpath).as_posix())
    return is_ignored or None  # None leaves it to other hooks


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sorts tests for workers of pytest-xdist."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: turn(item.nodeid))


_QUIETED = ("httpx", "httpcore", "asyncio", "grpc")


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Undoes what a command configured that ran in this process."""
    root, config = logging.getLogger(), structlog.get_config()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in _QUIETED}
    root_level = root.level
    yield
    for handler in root.handlers:
        handler.flush()  # a thread writes
    structlog.configure(**config)
    root.handlers[:] = handlers
    root.setLevel(root_level)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(autouse=True)
def _keep_signal_handlers() -> Iterator[None]:
    """Fails a test that leaves another handler of SIGINT or SIGTERM, and restores the handler."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    left = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert left == before, "the test left another signal handler, which later tests would meet"
