"""Counters, gauges and histograms produce the same output as prometheus_client's."""

from __future__ import annotations

import prometheus_client
import pytest
from alignserve_server.observability import instruments
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

BOUNDS = (0.001, 0.5, 1.0)
AMOUNTS = st.floats(0, 10, allow_nan=False)
EVENTS = st.lists(st.tuples(st.sampled_from(["cat", "dog"]), AMOUNTS | st.sampled_from(BOUNDS)))


@given(EVENTS)
def test_pages_are_those_of_prometheus_client(events: list[tuple[str, float]]) -> None:
    """The same events produce the same lines, in both formats."""
    disable_created_metrics()
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    they = (
        prometheus_client.Counter("calls", "Calls.", ["kind"], registry=theirs),
        prometheus_client.Gauge("waiting", "Waiting.", ["kind"], registry=theirs),
        prometheus_client.Histogram("seconds", "Seconds.", ["kind"], registry=theirs, buckets=BOUNDS),
    )
    we = (
        instruments.Counter("calls", "Calls.", ["kind"], ours),
        instruments.Gauge("waiting", "Waiting.", ["kind"], ours),
        instruments.Histogram("seconds", "Seconds.", ["kind"], ours, BOUNDS),
    )

    for calls, waiting, seconds in (they, we):
        for kind, amount in events:
            calls.labels(kind).inc(amount)
            waiting.labels(kind).inc(amount)
            waiting.labels(kind).dec(amount / 2)
            seconds.labels(kind).observe(amount)

    assert generate_latest(ours) == generate_latest(theirs)
    assert openmetrics(ours) == openmetrics(theirs)


def test_a_bucket_keeps_its_latest_exemplar() -> None:
    """It is stored with the value."""
    registry = CollectorRegistry()
    seconds = instruments.Histogram("seconds", "Seconds.", ["kind"], registry, BOUNDS).labels("cat")

    seconds.observe(0.2, {"trace_id": "old"})
    seconds.observe(0.3, {"trace_id": "new"})
    seconds.observe(0.4)

    (family,) = registry.collect()
    (exemplar,) = [sample.exemplar for sample in family.samples if sample.exemplar]
    assert (exemplar.labels, exemplar.value) == ({"trace_id": "new"}, 0.3)


def test_a_series_needs_all_its_labels() -> None:
    """A mistake in the code fails immediately."""
    counter = instruments.Counter("calls", "Calls.", ["kind", "code"], CollectorRegistry())

    with pytest.raises(ValueError, match=r"\('kind', 'code'\)"):
        counter.labels("cat")
