"""Merges the metrics of all workers: every series gets a label `worker`, and `worker_up` is added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from http.client import HTTPConnection, HTTPException
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from alignserve_server.observability.metrics import server_state, state_series

_TIMEOUT_SECONDS = 1.0

PagePorts: TypeAlias = Mapping[str, int]  # by worker, of those that are ready
States: TypeAlias = Mapping[str, str]  # by worker, of all, each one of `metrics.STATES`


class WorkerPages(Collector):
    """Collects the current metrics of the workers from their own ports on this machine."""

    def __init__(
        self,
        workers: Sequence[str],
        ports: Callable[[], PagePorts],
        states: Callable[[], States],
        supervisor: CollectorRegistry,
        *,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        """Does not collect yet.

        Args:
            workers: Their names, ready or not.
            ports: Returns the ports of their metrics.
            states: Returns the states of those that take calls; those that are not ready have no metrics of
                their own.
            supervisor: Metrics of this process that workers have too, exported with `worker="supervisor"`.
            timeout_seconds: A worker that has not answered by then is not up.
        """
        self._workers = workers
        self._ports = ports
        self._states = states
        self._supervisor = supervisor
        self._timeout_seconds = timeout_seconds
        self._pool = ThreadPoolExecutor(
            2 * len(workers), "pages"
        )  # a worker that hangs does not delay another scrape

    def collect(self) -> Iterator[Metric]:
        pages = self._fetch_all()
        up = GaugeMetricFamily(
            "alignserve_worker_up",
            "1 if the worker is ready and its metrics were collected.",
            labels=["worker"],
        )
        for worker in self._workers:
            up.add_metric([worker], worker in pages)
        yield up
        missing = {worker: _page_of(state) for worker, state in self._states().items() if worker not in pages}
        yield from merged({**pages, **missing, "supervisor": _page(self._supervisor)})

    def _fetch_all(self) -> dict[str, str]:
        fetches = {
            worker: self._pool.submit(_fetch, port, self._timeout_seconds)
            for worker, port in self._ports().items()
        }
        done, late = wait(fetches.values(), self._timeout_seconds)
        for fetch in late:
            fetch.cancel()  # or fetches that have not started would delay later scrapes
        pages = {worker: fetch.result() for worker, fetch in fetches.items() if fetch in done}
        return {worker: page for worker, page in pages.items() if page is not None}


def merged(pages: Mapping[str, str]) -> list[Metric]:
    """Merges pages in OpenMetrics format: each family once, with every series of every page."""
    families: dict[str, Metric] = {}
    for worker, page in pages.items():
        for family in text_string_to_metric_families(page):  # type: ignore[no-untyped-call]  # in prometheus_client
            merged_family = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {"worker": worker, **sample.labels}
                merged_family.add_sample(sample.name, labels, sample.value, exemplar=sample.exemplar)
    return list(families.values())


def _page_of(state: str) -> str:
    """Returns the page of a worker that is not ready: its state."""
    registry = CollectorRegistry()
    server_state(registry).set_function(lambda: state_series(state))
    return _page(registry)


def _page(registry: CollectorRegistry) -> str:
    page: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]  # in prometheus_client
    return page.decode()


def _fetch(port: int, timeout_seconds: float) -> str | None:
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        # The format with exemplars.
        connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
        return connection.getresponse().read().decode()
    except (OSError, HTTPException):  # the worker has died or hangs
        return None
    finally:
        connection.close()
