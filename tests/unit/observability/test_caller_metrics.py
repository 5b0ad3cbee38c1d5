"""Items by caller: who has series, since when, and until when."""

from __future__ import annotations

import pytest
from alignserve_server.observability.caller_metrics import CALLER_OUTCOMES, CallerMetrics
from alignserve_server.observability.metrics import Metrics
from prometheus_client import CollectorRegistry


def shown(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Returns what is shown of each caller, by outcome and `waiting`."""
    return {
        (sample.labels["caller"], sample.labels.get("outcome", "waiting")): sample.value
        for family in metrics.registry.collect()
        if family.name.startswith("alignserve_caller_")
        for sample in family.samples
    }


def names(metrics: Metrics) -> set[str]:
    """Returns the callers that have series, each with all of them."""
    page = shown(metrics)
    found = {name for name, _ in page}
    assert page.keys() >= {(name, what) for name in found for what in (*CALLER_OUTCOMES, "waiting")}
    return found


def test_keys_have_series_before_they_call(metrics: Metrics) -> None:
    """At 0, so that a flood's first minute is in the rate."""
    metrics.callers.know_keys(["search", "nightly"])

    assert names(metrics) == {"anonymous", "search", "nightly"}
    assert set(shown(metrics).values()) == {0.0}


def test_items_are_counted_by_name(metrics: Metrics) -> None:
    """Keys and certificates by theirs; hosts, and keys that are not in the file, as one."""
    metrics.callers.know_keys(["search"])
    for caller in ("key:search", "certificate:edge", "ipv4:10.0.0.1", "key:forged"):
        metrics.callers.accept(caller, 2)
        metrics.callers.refuse(caller, 3)
        metrics.callers.wait(caller, 5)

    page = shown(metrics)

    assert names(metrics) == {"search", "certificate:edge", "anonymous"}
    assert [page["search", what] for what in ("accepted", "rejected", "waiting")] == [2, 3, 5]
    assert [page["certificate:edge", what] for what in ("accepted", "rejected", "waiting")] == [2, 3, 5]
    assert [page["anonymous", what] for what in ("accepted", "rejected", "waiting")] == [4, 6, 10]


def test_a_key_that_is_gone_takes_its_series_with_it(metrics: Metrics) -> None:
    """What it still has waiting is nobody's by name, and goes down to 0; made again, it starts anew."""
    callers = metrics.callers
    callers.know_keys(["search", "nightly"])
    callers.accept("key:nightly", 7)
    callers.wait("key:nightly", 7)

    callers.know_keys(["search"])

    assert names(metrics) == {"anonymous", "search"}
    assert shown(metrics)["anonymous", "waiting"] == 7
    callers.wait("key:nightly", -7)
    assert shown(metrics)["anonymous", "waiting"] == 0
    callers.know_keys(["search", "nightly"])
    assert shown(metrics)["nightly", "accepted"] == 0


@pytest.mark.parametrize("kind", ["keys", "certificates"])
def test_names_are_bounded(kind: str) -> None:
    """However many keys or certificates an operator makes; all but the first share a name."""
    metrics = Metrics(CollectorRegistry())
    callers = CallerMetrics(metrics.caller_items, metrics.caller_waiting_items, max_names=3)
    many = [f"caller-{number}" for number in range(50)]
    if kind == "keys":
        callers.know_keys(many)
    for name in many:
        callers.accept(f"{'key' if kind == 'keys' else 'certificate'}:{name}", 1)
        callers.wait(f"{'key' if kind == 'keys' else 'certificate'}:{name}", 1)

    assert len(names(metrics)) == 5
    assert shown(metrics)["other", "accepted"] == shown(metrics)["other", "waiting"] == 47


@pytest.mark.parametrize("name", ["anonymous", "other"])
def test_a_key_cannot_hide_among_the_nameless(metrics: Metrics, name: str) -> None:
    """By its own name; callers without one stay apart."""
    metrics.callers.know_keys([name])
    metrics.callers.accept(f"key:{name}", 3)

    assert shown(metrics)[f"key:{name}", "accepted"] == 3
    assert shown(metrics)["anonymous", "accepted"] == 0


def test_a_long_name_of_a_certificate_is_cut(metrics: Metrics) -> None:
    """A label is no place for kilobytes."""
    metrics.callers.accept(f"certificate:{'x' * 10_000}", 1)

    assert max(map(len, names(metrics))) == 100
