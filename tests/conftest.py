"""How property tests search: few and the same ones, or `--hypothesis-profile long`: many, other each time."""

from __future__ import annotations

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
