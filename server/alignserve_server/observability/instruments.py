"""prometheus_client's counters, gauges and histograms for a single thread that writes; any thread may read.

Its own take a lock and several frames for each event, which came to a twentieth of the CPU time of a small
call (section `watching` of tests/load). Registry and formats are still its own, and what several threads
write has to be.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Generic, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

Bucket: TypeAlias = "tuple[str, float] | tuple[str, float, Exemplar]"

Labels: TypeAlias = "Sequence[str] | Mapping[str, Sequence[str]]"
"""The names of a metric's labels; with all the values that each can have, where these are known."""

_Series = TypeVar("_Series")


class Number:
    """A series of a counter, or of a gauge that is counted up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        self.value -= amount

    def set(self, value: float) -> None:
        self.value = value


class Reading:
    """A series of a gauge that is read off; not shown before there is a value, nor while there is none."""

    __slots__ = ("_read",)

    def __init__(self) -> None:
        self._read: Callable[[], float | None] = lambda: None

    @property
    def value(self) -> float | None:
        return self._read()

    def set(self, value: float) -> None:
        self._read = lambda: value

    def set_function(self, read: Callable[[], float | None]) -> None:
        """Has the value read from a function, which any thread may call."""
        self._read = read


class Distribution:
    """A series of a histogram."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: list[Exemplar | None] = [None] * len(self._counts)  # the latest of each bucket
        self._sum = 0.0

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        """Counts a value; the exemplar leads from it to where it comes from."""
        bucket = bisect_left(self._bounds, value)  # bounds belong to the bucket below them
        self._counts[bucket] += 1
        self._sum += value
        if exemplar is not None:
            self._exemplars[bucket] = Exemplar(exemplar, value, time.time())

    def read(self) -> tuple[list[Bucket], float]:
        """Returns the buckets, cumulative, each with its upper bound and exemplar; and the sum."""
        buckets: list[Bucket] = []
        total = 0.0
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for bound, count, exemplar in zip(bounds, list(self._counts), self._exemplars, strict=True):
            total += count
            buckets.append((bound, total) if exemplar is None else (bound, total, exemplar))
        return buckets, self._sum


class _Instrument(Collector, Generic[_Series]):
    """A metric and its series, by the values of its labels.

    Where all values are known, all series are there from the start: one that appears only with its first
    event makes rates and alerts miss that event.
    """

    def __init__(self, name: str, documentation: str, labels: Labels, registry: CollectorRegistry) -> None:
        self.name = name
        self.documentation = documentation
        self.label_names = tuple(labels)
        self._series: dict[tuple[str, ...], _Series] = {}
        if isinstance(labels, Mapping):
            for values in product(*labels.values()):
                self.labels(*values)
        registry.register(self)

    def labels(self, *values: str) -> _Series:
        """Returns the series of these values, in the order of the labels' names."""
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {self.label_names}, not {values}")
        if values not in self._series:
            self._series[values] = self._new()
        return self._series[values]

    def remove(self, *values: str) -> None:
        """Ends the series of these values, if it is there."""
        self._series.pop(values, None)

    def _new(self) -> _Series:
        raise NotImplementedError


class _Numbers(_Instrument[Number]):
    """Numbers, as the family shows them."""

    _family: type[CounterMetricFamily] | type[GaugeMetricFamily]

    def _new(self) -> Number:
        return Number()

    def collect(self) -> Iterable[Metric]:
        family = self._family(self.name, self.documentation, labels=self.label_names)
        for values, number in list(self._series.items()):
            family.add_metric(values, number.value)
        return [family]


class Counter(_Numbers):
    """What only grows. Its name comes without `_total`."""

    _family = CounterMetricFamily


class Gauge(_Numbers):
    """What is counted up and down, from 0."""

    _family = GaugeMetricFamily


class Measured(_Instrument[Reading]):
    """A gauge of what is read off or measured. It has no series before it is known.

    A 0 that stands for "not known yet" ends in quotients and averages over servers, and in decisions.
    """

    def _new(self) -> Reading:
        return Reading()

    def set(self, value: float) -> None:
        """Sets the series, if there are no labels."""
        self.labels().set(value)

    def set_function(self, read: Callable[[], float | None]) -> None:
        """Has the series read from a function, if there are no labels."""
        self.labels().set_function(read)

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self.name, self.documentation, labels=self.label_names)
        for values, reading in list(self._series.items()):
            if (value := reading.value) is not None:
                family.add_metric(values, value)
        return [family]


class Computed(Collector):
    """A gauge whose series a function returns, by the values of their labels."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.label_names = tuple(labels)
        self._read: Callable[[], Mapping[tuple[str, ...], float]] = dict
        registry.register(self)

    def set_function(self, read: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        """Has the series read from a function, which any thread may call."""
        self._read = read

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self.name, self.documentation, labels=self.label_names)
        for values, value in self._read().items():
            family.add_metric(values, value)
        return [family]


class FunctionCounter(Collector):
    """A counter without labels whose value a function returns. Its name comes without `_total`."""

    label_names: tuple[str, ...] = ()

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self.name = name
        self.documentation = documentation
        self._read: Callable[[], float] = lambda: 0.0
        registry.register(self)

    def set_function(self, read: Callable[[], float]) -> None:
        """Has the value read from a function, which any thread may call."""
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return [CounterMetricFamily(self.name, self.documentation, value=self._read())]


class Histogram(_Instrument[Distribution]):
    """How values are spread over buckets."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Labels,
        registry: CollectorRegistry,
        bounds: Sequence[float],
    ) -> None:
        self._bounds = tuple(bounds)
        super().__init__(name, documentation, labels, registry)

    def _new(self) -> Distribution:
        return Distribution(self._bounds)

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.label_names)
        for values, distribution in list(self._series.items()):
            buckets, total = distribution.read()
            family.add_metric(values, buckets, total)
        return [family]
