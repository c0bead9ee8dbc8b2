"""One family of metrics: its definition, which is also its line in ``docs/metrics.md``, and the objects made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.measures.distribution import Distribution

LATENCY_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
REQUEST_BYTES = tuple(float(1 << power) for power in range(14, 41, 2))
CONTEXT_TOKENS = tuple(float(1 << power) for power in range(6, 25, 2))
INFORMATION_BITS = tuple(float(1 << power) for power in range(8, 43, 2))


class Kind(StrEnum):
    """The types of Prometheus that are used here."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Measure:
    """A family of samples. ``name`` is as on the wire, so that a counter's ends in ``_total``.

    ``labels`` has for each label all its values, or in words where they come from; never an id of anything a client
    made, so that the number of series is bound. ``bad`` is what it looks like when something is wrong, and what helps.
    """

    name: str
    kind: Kind
    unit: str
    what: str
    bad: str = ""
    labels: Mapping[str, Sequence[str] | str] = field(default_factory=dict)
    buckets: Sequence[float] = ()

    def counter(self, registry: CollectorRegistry) -> Counter:
        """A counter that is counted up where things happen. A rate does not see the first of a series that was not
        there before, so those that somebody is to be woken by should be made at once."""
        return Counter(self.name, self.what, [*self.labels], registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Distribution:
        """A histogram in the registry, with all values of its label if it has one."""
        if not self.labels:
            return Distribution(self.name, self.what, self.buckets, registry)
        ((label, values),) = self.labels.items()
        return Distribution(self.name, self.what, self.buckets, registry, label, values)

    def of(self, value: float) -> Metric:
        """The family without labels, at this value."""
        if self.kind is Kind.COUNTER:
            return CounterMetricFamily(self.name, self.what, value=value)
        return GaugeMetricFamily(self.name, self.what, value=value)

    def by(self, values: Mapping[str, float]) -> Metric:
        """The family with one label, by its values."""
        return self.by_each({(value,): number for value, number in values.items()})

    def by_each(self, values: Mapping[Any, float]) -> Metric:
        """The family by tuples of the values of all its labels, in their order."""
        family: CounterMetricFamily | GaugeMetricFamily
        if self.kind is Kind.COUNTER:
            family = CounterMetricFamily(self.name, self.what, labels=[*self.labels])
        else:
            family = GaugeMetricFamily(self.name, self.what, labels=[*self.labels])
        for labels, number in values.items():
            family.add_metric(labels, number)
        return family
