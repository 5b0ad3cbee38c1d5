"""Fixtures shared by the unit tests."""

from __future__ import annotations

import pytest
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.metrics import Metrics
from alignserve_server.observability.tracing import Tracing
from prometheus_client import CollectorRegistry


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def observer(metrics: Metrics) -> MetricsObserver:
    """Writes to `metrics` and samples no calls."""
    return MetricsObserver(metrics, Tracing(None, 0.0))
