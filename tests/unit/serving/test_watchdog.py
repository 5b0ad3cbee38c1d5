"""The watchdog's interval between checks."""

from __future__ import annotations

import pytest
from alignserve_server.serving.watchdog import StallPolicy


@pytest.mark.parametrize(("timeout", "interval"), [(0.5, 0.05), (10.0, 1.0), (60.0, 1.0)])
def test_checks_follow_the_timeout(timeout: float, interval: float) -> None:
    """There are ten checks per timeout, and at least one per second."""
    assert StallPolicy(timeout, exit_seconds=0.0).interval_seconds == pytest.approx(interval)
