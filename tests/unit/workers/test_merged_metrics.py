"""The metrics pages of all workers are merged into one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from wsgiref.simple_server import WSGIServer

import pytest
from alignserve_server.observability.metrics import STATES, Metrics, log_lines_dropped, state_series
from alignserve_server.observability.metrics_http import serve_metrics_page
from alignserve_server.workers.merged_metrics import WorkerPages, merged
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics


@pytest.fixture
def page(metrics: Metrics) -> Iterator[WSGIServer]:
    """The page of a worker that has embedded two images."""
    metrics.items.labels("image", "ok").inc(2)
    server = serve_metrics_page("127.0.0.1:0", metrics.registry, lambda: "serving")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a page that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def registry_of(ports: dict[str, int]) -> CollectorRegistry:
    """Returns a registry that collects the pages of up to two workers, with a short timeout."""
    registry = CollectorRegistry()
    supervisor = CollectorRegistry()
    log_lines_dropped(supervisor).set_function(lambda: 7.0)
    states = {"0": "loading", "1": "serving"}
    registry.register(WorkerPages(["0", "1"], lambda: ports, lambda: states, supervisor, timeout_seconds=0.2))
    return registry


def text_of(pages: dict[str, CollectorRegistry]) -> str:
    """Merges the pages of registries and returns the result."""
    families = merged({worker: openmetrics(registry).decode() for worker, registry in pages.items()})
    registry = CollectorRegistry()
    registry.collect = lambda: families  # type: ignore[method-assign]
    return generate_latest(registry).decode()


def test_every_series_keeps_its_value_and_gets_a_label() -> None:
    """Counters, gauges and histograms of each worker stay exact, and each family is described once."""
    disable_created_metrics()
    pages = {}
    for worker in ("0", "1"):
        pages[worker] = CollectorRegistry()
        Counter("calls", "Calls.", registry=pages[worker]).inc(0.1 + int(worker))
        Gauge("waiting", "Waiting.", ["kind"], registry=pages[worker]).labels("image").set(3)
        Histogram("seconds", "Seconds.", registry=pages[worker], buckets=[1]).observe(0.5)

    lines = text_of(pages).splitlines()

    assert lines == [
        *("# HELP calls_total Calls.", "# TYPE calls_total counter"),
        *('calls_total{worker="0"} 0.1', 'calls_total{worker="1"} 1.1'),
        *("# HELP waiting Waiting.", "# TYPE waiting gauge"),
        *('waiting{kind="image",worker="0"} 3.0', 'waiting{kind="image",worker="1"} 3.0'),
        *("# HELP seconds Seconds.", "# TYPE seconds histogram"),
        *('seconds_bucket{le="1.0",worker="0"} 1.0', 'seconds_bucket{le="+Inf",worker="0"} 1.0'),
        *('seconds_count{worker="0"} 1.0', 'seconds_sum{worker="0"} 0.5'),
        *('seconds_bucket{le="1.0",worker="1"} 1.0', 'seconds_bucket{le="+Inf",worker="1"} 1.0'),
        *('seconds_count{worker="1"} 1.0', 'seconds_sum{worker="1"} 0.5'),
    ]


def test_exemplars_stay_with_their_buckets() -> None:
    """They link to the trace of a call that the worker served."""
    registry = CollectorRegistry()
    Histogram("seconds", "Seconds.", registry=registry, buckets=[1]).observe(0.5, {"trace_id": "abc"})

    (family,) = merged({"0": openmetrics(registry).decode()})

    exemplars = {sample.labels["le"]: sample.exemplar for sample in family.samples if sample.exemplar}
    assert exemplars["1.0"].labels == {"trace_id": "abc"}


@pytest.mark.parametrize("value", ['a "quoted" name', "C:\\models\nline", "ü{}=,"])
def test_special_characters_in_labels_are_preserved(value: str) -> None:
    """The page stays valid, and the label unchanged."""
    registry = CollectorRegistry()
    Gauge("info", "About \\ this.", ["name"], registry=registry).labels(value).set(1)

    (family,) = merged({"0": openmetrics(registry).decode()})

    assert family.documentation == "About \\ this."
    assert family.samples[0].labels == {"worker": "0", "name": value}


def test_a_worker_that_responds_is_up(page: WSGIServer) -> None:
    """Its series are on the page; a worker without a page is down and has none."""
    registry = registry_of({"1": page.server_port})

    assert registry.get_sample_value("alignserve_worker_up", {"worker": "0"}) == 0
    assert registry.get_sample_value("alignserve_worker_up", {"worker": "1"}) == 1
    ok = {"modality": "image", "outcome": "ok"}
    assert registry.get_sample_value("alignserve_items_total", {**ok, "worker": "1"}) == 2
    assert registry.get_sample_value("alignserve_items_total", {**ok, "worker": "0"}) is None


def test_the_state_of_a_worker_without_a_page_is_shown(metrics: Metrics, page: WSGIServer) -> None:
    """Nothing else is known about a worker that is loading or restarting; each state is shown once."""
    metrics.state.set_function(lambda: state_series("serving"))

    lines = generate_latest(registry_of({"1": page.server_port})).decode().splitlines()

    states = [line for line in lines if line.startswith("alignserve_state{")]
    assert sorted(line for line in states if line.endswith(" 1.0")) == [
        'alignserve_state{state="loading",worker="0"} 1.0',
        'alignserve_state{state="serving",worker="1"} 1.0',
    ]
    assert len(states) == 2 * len(STATES)


def test_the_supervisor_is_counted_like_a_worker(page: WSGIServer) -> None:
    """Metrics that it shares with the workers are in the same families, with a label of its own."""
    text = generate_latest(registry_of({"1": page.server_port})).decode()

    name = "alignserve_log_lines_dropped_total"
    assert [line for line in text.splitlines() if name in line and not line.startswith("# HELP")] == [
        f"# TYPE {name} counter",
        f'{name}{{worker="1"}} 0.0',
        f'{name}{{worker="supervisor"}} 7.0',
    ]


@pytest.mark.timeout(30)
def test_a_worker_that_hangs_does_not_block_the_page(page: WSGIServer, silent: int) -> None:
    """It is down, and the other workers' series are on the page."""
    registry = registry_of({"0": silent, "1": page.server_port})

    assert registry.get_sample_value("alignserve_worker_up", {"worker": "0"}) == 0
    assert registry.get_sample_value("alignserve_worker_up", {"worker": "1"}) == 1


def test_a_worker_that_has_died_is_down(page: WSGIServer, silent: int) -> None:
    """Its port is closed, which does not break the page."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]

    registry = registry_of({"0": closed, "1": page.server_port})

    assert registry.get_sample_value("alignserve_worker_up", {"worker": "0"}) == 0
    assert registry.get_sample_value("alignserve_worker_up", {"worker": "1"}) == 1
