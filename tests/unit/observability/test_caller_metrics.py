"""Items by caller: which callers have series, and for how long."""

from __future__ import annotations

import pytest
from alignserve_server.observability.caller_metrics import CALLER_OUTCOMES, CallerMetrics
from alignserve_server.observability.metrics import Metrics
from prometheus_client import CollectorRegistry


def shown(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Returns the values of each caller, by outcome and `waiting`."""
    return {
        (sample.labels["caller"], sample.labels.get("outcome", "waiting")): sample.value
        for family in metrics.registry.collect()
        if family.name.startswith("alignserve_caller_")
        for sample in family.samples
    }


def names(metrics: Metrics) -> set[str]:
    """Returns the callers that have series; each one must have all of them."""
    page = shown(metrics)
    found = {name for name, _ in page}
    assert page.keys() >= {(name, what) for name in found for what in (*CALLER_OUTCOMES, "waiting")}
    return found


def test_keys_have_series_before_they_call(metrics: Metrics) -> None:
    """They start at 0, so that rates include the first minute of a flood."""
    metrics.callers.set_keys(["search", "nightly"])

    assert names(metrics) == {"anonymous", "search", "nightly"}
    assert set(shown(metrics).values()) == {0.0}


def test_items_are_counted_by_name(metrics: Metrics) -> None:
    """Keys and certificates have their own names; hosts and unknown keys share one."""
    metrics.callers.set_keys(["search"])
    for caller in ("key:search", "certificate:edge", "ipv4:10.0.0.1", "key:forged"):
        metrics.callers.accept(caller, 2)
        metrics.callers.refuse(caller, 3)
        metrics.callers.wait(caller, 5)

    page = shown(metrics)

    assert names(metrics) == {"search", "certificate:edge", "anonymous"}
    assert [page["search", what] for what in ("accepted", "rejected", "waiting")] == [2, 3, 5]
    assert [page["certificate:edge", what] for what in ("accepted", "rejected", "waiting")] == [2, 3, 5]
    assert [page["anonymous", what] for what in ("accepted", "rejected", "waiting")] == [4, 6, 10]


def test_the_series_of_a_removed_key_disappear(metrics: Metrics) -> None:
    """Its waiting items count as anonymous and go down to 0. If the key is created again, it starts at 0."""
    callers = metrics.callers
    callers.set_keys(["search", "nightly"])
    callers.accept("key:nightly", 7)
    callers.wait("key:nightly", 7)

    callers.set_keys(["search"])

    assert names(metrics) == {"anonymous", "search"}
    assert shown(metrics)["anonymous", "waiting"] == 7
    callers.wait("key:nightly", -7)
    assert shown(metrics)["anonymous", "waiting"] == 0
    callers.set_keys(["search", "nightly"])
    assert shown(metrics)["nightly", "accepted"] == 0


@pytest.mark.parametrize("kind", ["keys", "certificates"])
def test_the_number_of_names_is_limited(kind: str) -> None:
    """An operator may create any number of keys or certificates; those beyond the limit share a name."""
    metrics = Metrics(CollectorRegistry())
    callers = CallerMetrics(metrics.caller_items, metrics.caller_waiting_items, max_names=3)
    many = [f"caller-{number}" for number in range(50)]
    if kind == "keys":
        callers.set_keys(many)
    for name in many:
        callers.accept(f"{'key' if kind == 'keys' else 'certificate'}:{name}", 1)
        callers.wait(f"{'key' if kind == 'keys' else 'certificate'}:{name}", 1)

    assert len(names(metrics)) == 5
    assert shown(metrics)["other", "accepted"] == shown(metrics)["other", "waiting"] == 47


@pytest.mark.parametrize("name", ["anonymous", "other"])
def test_a_key_with_a_reserved_name_keeps_its_own_series(metrics: Metrics, name: str) -> None:
    """It is not counted with anonymous or other callers."""
    metrics.callers.set_keys([name])
    metrics.callers.accept(f"key:{name}", 3)

    assert shown(metrics)[f"key:{name}", "accepted"] == 3
    assert shown(metrics)["anonymous", "accepted"] == 0


def test_a_long_name_of_a_certificate_is_truncated(metrics: Metrics) -> None:
    """Labels should not have kilobytes."""
    metrics.callers.accept(f"certificate:{'x' * 10_000}", 1)

    assert max(map(len, names(metrics))) == 100
