"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest
from alignserve_server.observability.metrics import Metrics
from prometheus_client import CollectorRegistry


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())
