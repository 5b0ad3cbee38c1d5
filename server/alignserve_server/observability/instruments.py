"""Counters, gauges and histograms for prometheus_client that one thread writes and any thread may read.

prometheus_client's own take a lock and several function calls for each event, which was a twentieth of the
CPU time of a small call (section `watching` of tests/load). Its registry and formats are still used, and so
are its own metrics for values that several threads write.
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
"""The names of a metric's labels, or a mapping to all values of each label if these are known."""

_Series = TypeVar("_Series")


class Value:
    """A series of a counter, or of a gauge that is incremented and decremented."""

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
    """A series of a gauge that is measured; hidden while there is no value."""

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


class HistogramSeries:
    """A series of a histogram."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: list[Exemplar | None] = [None] * len(self._counts)  # the latest one in each bucket
        self._sum = 0.0

    def observe(self, value: float, exemplar: dict[str, str] | None = None, times: int = 1) -> None:
        """Counts a value, with an exemplar that links to its trace."""
        bucket = bisect_left(self._bounds, value)  # a value equal to a bound is in the bucket below it
        self._counts[bucket] += times
        self._sum += value * times
        if exemplar is not None:
            self._exemplars[bucket] = Exemplar(exemplar, value, time.time())

    def totals(self) -> tuple[list[int], float]:
        """Returns the number of values in each bucket, and the sum of all values."""
        return list(self._counts), self._sum

    def read(self) -> tuple[list[Bucket], float]:
        """Returns the cumulative buckets, each with its upper bound and exemplar, and the sum."""
        buckets: list[Bucket] = []
        total = 0.0
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for bound, count, exemplar in zip(bounds, list(self._counts), self._exemplars, strict=True):
            total += count
            buckets.append((bound, total) if exemplar is None else (bound, total, exemplar))
        return buckets, self._sum


class _Instrument(Collector, Generic[_Series]):
    """A metric and its series, by label values.

    If all label values are known, every series exists from the beginning: rates and alerts would miss the
    first event of a series that appears with it.
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
        """Returns the series with these values, in the order of the labels' names."""
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {self.label_names}, not {values}")
        if values not in self._series:
            self._series[values] = self._new()
        return self._series[values]

    def remove(self, *values: str) -> None:
        """Removes the series with these values, if it exists."""
        self._series.pop(values, None)

    def _new(self) -> _Series:
        raise NotImplementedError


class _Values(_Instrument[Value]):
    """A metric whose series are plain values."""

    _family: type[CounterMetricFamily] | type[GaugeMetricFamily]

    def _new(self) -> Value:
        return Value()

    def collect(self) -> Iterable[Metric]:
        family = self._family(self.name, self.documentation, labels=self.label_names)
        for values, number in list(self._series.items()):
            family.add_metric(values, number.value)
        return [family]


class Counter(_Values):
    """A value that only grows. Give its name without `_total`."""

    _family = CounterMetricFamily


class Gauge(_Values):
    """A value that is incremented and decremented, from 0."""

    _family = GaugeMetricFamily


class Measured(_Instrument[Reading]):
    """A gauge of measured values. It has no series until a value is known.

    A 0 that means "not known yet" would distort ratios, averages over servers, and decisions.
    """

    def _new(self) -> Reading:
        return Reading()

    def set(self, value: float) -> None:
        """Sets the value of a metric without labels."""
        self.labels().set(value)

    def set_function(self, read: Callable[[], float | None]) -> None:
        """Has the value of a metric without labels read from a function."""
        self.labels().set_function(read)

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self.name, self.documentation, labels=self.label_names)
        for values, reading in list(self._series.items()):
            if (value := reading.value) is not None:
                family.add_metric(values, value)
        return [family]


class Computed(Collector):
    """A gauge whose series come from a function, by label values."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.label_names = tuple(labels)
        self._read: Callable[[], Mapping[tuple[str, ...], float]] = dict
        registry.register(self)

    def set_function(self, read: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        """Sets the function that returns the series; any thread may call it."""
        self._read = read

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self.name, self.documentation, labels=self.label_names)
        for values, value in self._read().items():
            family.add_metric(values, value)
        return [family]


class FunctionCounter(Collector):
    """A counter without labels whose value comes from a function. Give its name without `_total`."""

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


class Histogram(_Instrument[HistogramSeries]):
    """Counts values in buckets."""

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

    def _new(self) -> HistogramSeries:
        return HistogramSeries(self._bounds)

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.label_names)
        for values, distribution in list(self._series.items()):
            buckets, total = distribution.read()
            family.add_metric(values, buckets, total)
        return [family]
