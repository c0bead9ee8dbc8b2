"""Prometheus' histogram, for values that come with every token and are told with every scrape.

prometheus_client's own makes four objects for each bucket whenever somebody looks, which is most of what a scrape
costs, and the engine's thread waits for the interpreter meanwhile. Here a look copies the counts and writes the lines.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from server.measures.exposition import labelled, number


@dataclass(slots=True)
class Series:
    """Of one value of the label: the beginnings of its lines, those of the buckets first; counts by bucket; the sum."""

    heads: Sequence[str]
    counts: list[int]
    total: float = 0.0

    def text(self) -> str:
        """All its lines."""
        values = [*map(number, accumulate(self.counts)), number(sum(self.counts)), number(self.total)]
        return "".join([f"{head}{value}\n" for head, value in zip(self.heads, values, strict=True)])


@dataclass(frozen=True, slots=True)
class Look:
    """What there was at one moment, by the values of the label."""

    label: str | None
    bounds: Sequence[float]
    series: dict[str, Series] = field(default_factory=dict)


class WrittenFamily(HistogramMetricFamily):
    """A family that knows its ``text``; its samples are made only for who wants these."""

    def __init__(self, name: str, what: str, look: Look) -> None:
        self._samples: list[Sample] = []
        super().__init__(name, what, labels=[look.label] if look.label else None)
        self._unmade: Look | None = look
        self.text = "".join([series.text() for series in look.series.values()])

    @property
    def samples(self) -> list[Sample]:
        """Of all series."""
        look, self._unmade = self._unmade, None
        if look is not None:
            names = [number(bound) for bound in look.bounds]
            for value, series in look.series.items():
                buckets = list(zip(names, accumulate(series.counts), strict=True))
                self.add_metric([value] if look.label else [], buckets, series.total)
        return self._samples

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        self._samples = samples


class Distribution(Collector):
    """How many observations there were up to each of ``bounds``, by the values of at most one label, and their sum.

    Safe from any thread. The series of ``values`` are there at once.
    """

    def __init__(
        self,
        name: str,
        what: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        label: str | None = None,
        values: Sequence[str] = ("",),
    ) -> None:
        self._name, self._what, self._label = name, what, label
        self._bounds = (*bounds, inf)
        self._lock = threading.Lock()
        self._series = {value: self._empty(value) for value in values}
        registry.register(self)

    def observe(self, value: float, label_value: str = "") -> None:
        """Count one value, which is not NaN."""
        place = bisect_left(self._bounds, value)
        with self._lock:
            series = self._series.get(label_value)
            if series is None:
                series = self._series[label_value] = self._empty(label_value)
            series.counts[place] += 1
            series.total += value

    def describe(self) -> list[Metric]:
        """What is registered, without samples."""
        return [HistogramMetricFamily(self._name, self._what)]

    def collect(self) -> Iterator[Metric]:
        """One consistent look."""
        with self._lock:
            now = {value: Series(each.heads, each.counts[:], each.total) for value, each in self._series.items()}
        yield WrittenFamily(self._name, self._what, Look(self._label, self._bounds, now))

    def _empty(self, value: str) -> Series:
        own = ((self._label, value),) if self._label else ()
        buckets = [f"{self._name}_bucket{labelled((*own, ('le', number(bound))))} " for bound in self._bounds]
        labels = labelled(own) if own else ""
        heads = (*buckets, f"{self._name}_count{labels} ", f"{self._name}_sum{labels} ")
        return Series(heads, [0] * len(self._bounds))
