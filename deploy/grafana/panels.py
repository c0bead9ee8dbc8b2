"""What a panel of the dashboard is, and the PromQL that most of them ask."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

# Grafana puts in a window that holds at least four scrapes.
WINDOW = "$__rate_interval"
Kind = Literal["lines", "stack", "stat"]
Unit = Literal["bytes", "decbits", "s", "short", "percentunit", "ops"]


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression; ``legend`` may name labels as ``{{pool}}``. ``is_limit`` is drawn dashed, never stacked."""

    expr: str
    legend: str
    is_limit: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """``warn`` and ``alarm`` are values from which the panel is yellow and red; ``width`` is of 24 columns."""

    title: str
    kind: Kind
    unit: Unit
    shows: str
    when_bad: str
    queries: Sequence[Query]
    width: int = 8
    warn: float | None = None
    alarm: float | None = None
    is_logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


def of(name: str, **labels: str) -> str:
    """The series of the servers chosen above the dashboard. A label's value may be a pattern: ``=~...``, ``!~...``."""
    matchers = ['instance=~"$instance"']
    for label, value in labels.items():
        sign = value[:2] if value[:2] in ("=~", "!~") else "="
        matchers.append(f'{label}{sign}"{value.removeprefix(sign)}"')
    return f"{name}{{{', '.join(matchers)}}}"


def pace(name: str, by: str = "", **labels: str) -> str:
    """Events a second, summed by labels."""
    return f"sum by ({by}) (rate({of(name, **labels)}[{WINDOW}]))"


def share(name: str, **labels: str) -> str:
    """Which part of a counter's growth has these labels."""
    return f"sum(rate({of(name, **labels)}[{WINDOW}])) / sum(rate({of(name)}[{WINDOW}]))"


def mean(name: str) -> str:
    """Mean of a histogram's newest observations."""
    return f"sum(rate({of(f'{name}_sum')}[{WINDOW}])) / sum(rate({of(f'{name}_count')}[{WINDOW}]))"


def quantile(part: float, name: str, by: str = "") -> str:
    """Quantile of a histogram's newest observations, by a label or of all."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({part}, sum by ({labels}) (rate({of(f'{name}_bucket')}[{WINDOW}])))"


def quantiles(name: str) -> tuple[Query, ...]:
    """Half, 95 and 99 in a hundred."""
    return tuple(Query(quantile(part, name), f"{part:.0%}") for part in (0.5, 0.95, 0.99))
