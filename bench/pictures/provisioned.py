"""The panels as Grafana gets them: read from the committed dashboard, with its variables put in."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "fano.json"


@dataclass(frozen=True, slots=True)
class Target:
    """A query without variables. ``legend`` has labels as ``{{pool}}``; ``is_limit`` is what the panel draws dashed."""

    expr: str
    legend: str
    is_instant: bool
    is_limit: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A panel: its place in the grid of 24 columns, and how its values are drawn."""

    row: str
    title: str
    type: str
    unit: str
    description: str
    place: Mapping[str, int]
    targets: tuple[Target, ...]
    is_stack: bool
    is_logarithmic: bool


def read_dashboard(path: Path = DASHBOARD) -> dict[str, Any]:
    """The file."""
    dashboard: dict[str, Any] = json.loads(path.read_text())
    return dashboard


def read_panels(window: str, instance: str = ".+", path: Path = DASHBOARD) -> list[Shown]:
    """All panels but the headings; ``window`` stands for ``$__rate_interval``, ``instance`` is a pattern of servers."""
    return list(_panels(read_dashboard(path), {"$__rate_interval": window, "$instance": instance}))


def _panels(dashboard: Mapping[str, Any], variables: Mapping[str, str]) -> Iterator[Shown]:
    row = ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        defaults = panel["fieldConfig"]["defaults"]
        custom = defaults.get("custom", {})
        dashed = {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]}
        targets = tuple(
            Target(
                _put_in(each["expr"], variables),
                each["legendFormat"],
                each.get("instant", False),
                each["legendFormat"] in dashed,
            )
            for each in panel["targets"]
        )
        yield Shown(
            row,
            panel["title"],
            panel["type"],
            defaults["unit"],
            panel["description"],
            panel["gridPos"],
            targets,
            custom.get("stacking", {}).get("mode") == "normal",
            custom.get("scaleDistribution", {}).get("type") == "log",
        )


def _put_in(expression: str, variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        expression = expression.replace(name, value)
    if "$" in expression:
        raise ValueError(f"{expression} has a variable other than {', '.join(variables)}")
    return expression
