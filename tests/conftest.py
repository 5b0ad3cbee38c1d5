"""How property tests search, few and the same ones, or `--hypothesis-profile long`: many, other each time.

And that no test leaves its logging behind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow]  # a step waits for threads; how long says nothing of the strategies

settings.register_profile(
    "short",
    derandomize=True,
    deadline=None,
    max_examples=200,
    print_blob=True,
    stateful_step_count=40,
    suppress_health_check=_SLOW,
)
settings.register_profile(
    "long",
    deadline=None,
    max_examples=10000,
    print_blob=True,
    stateful_step_count=100,
    suppress_health_check=_SLOW,
)
settings.load_profile("short")

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
