"""The dashboard as Grafana provisions it, made from ``rows`` with Grafana's own Foundation SDK.

python -m deploy.grafana.dashboard           writes dashboards/fano.json
python -m deploy.grafana.dashboard --check   exits with 1 where the file is not what this would write
"""

import argparse
import itertools
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.panels import Panel, Query
from deploy.grafana.rows import ROWS

FILE = Path(__file__).parent / "dashboards" / "fano.json"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHTS = {"stat": 5, "lines": 8, "stack": 8}


def build() -> str:
    """The dashboard in JSON."""
    dashboard = (
        builders.Dashboard("Fano")
        .uid("fano")
        .description("The memory of long-context inference: every pool beside its plan, and what requests wait for.")
        .tags(["fano", "inference"])
        .time("now-30m", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            builders.QueryVariable("instance")
            .label("Server")
            .datasource(SOURCE)
            .query("label_values(fano_build_info, instance)")
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".+")
            .current(models.VariableOption(selected=True, text="All", value="$__all"))
        )
    )
    numbers = itertools.count(1)
    for row in ROWS:
        dashboard.with_row(builders.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            made = stat(panel) if panel.kind == "stat" else time_series(panel)
            dashboard.with_panel(made.id(next(numbers)))
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard.build()) + "\n"


def target(query: Query, number: int, is_instant: bool) -> Dataquery:
    """A query with its letter."""
    made = Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + number)).datasource(SOURCE)
    return made.instant() if is_instant else made.range()


def description(panel: Panel) -> str:
    """What stands behind the panel's (i)."""
    return f"{panel.shows}\n\n**When it is bad:** {panel.when_bad}"


def thresholds(panel: Panel) -> builders.ThresholdsConfig:
    """Green, and yellow and red from where the panel says."""
    steps = [models.Threshold(value=None, color="green")]
    for value, color in ((panel.warn, "yellow"), (panel.alarm, "red")):
        if value is not None:
            steps.append(models.Threshold(value=value, color=color))
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def stat(panel: Panel) -> Stat:
    """A number of now. Where the legend is a label, it is the label that is read."""
    is_name = panel.queries[0].legend.startswith("{{")
    made = (
        Stat()
        .title(panel.title)
        .description(description(panel))
        .unit(panel.unit)
        .height(HEIGHTS[panel.kind])
        .span(panel.width)
        .datasource(SOURCE)
        .thresholds(thresholds(panel))
        .graph_mode(common.BigValueGraphMode.NONE)
        .text_mode(common.BigValueTextMode.NAME if is_name else common.BigValueTextMode.AUTO)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    for number, query in enumerate(panel.queries):
        made.with_target(target(query, number, is_instant=True))
    return made


def time_series(panel: Panel) -> TimeSeries:
    """Lines over time, filled and on each other where the panel is a stack."""
    is_stack = panel.kind == "stack"
    made = (
        TimeSeries()
        .title(panel.title)
        .description(description(panel))
        .unit(panel.unit)
        .height(HEIGHTS[panel.kind])
        .span(panel.width)
        .datasource(SOURCE)
        .thresholds(thresholds(panel))
        .line_width(1)
        .fill_opacity(40 if is_stack else 0)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
    )
    if panel.is_logarithmic:
        made.scale_distribution(common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10))
    else:
        made.min(0)
        if is_stack:
            made.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    for number, query in enumerate(panel.queries):
        made.with_target(target(query, number, is_instant=False))
        if query.is_limit:
            made.override_by_name(query.legend, [
                models.DynamicConfigValue("custom.stacking", {"mode": "none"}),
                models.DynamicConfigValue("custom.fillOpacity", 0),
                models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
            ])  # fmt: skip
    return made


def main() -> int:
    """Write the file, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the file differs")
    if not parser.parse_args().check:
        FILE.write_text(build())
        return 0
    if FILE.read_text() == build():
        return 0
    sys.stderr.write(f"{FILE} is not what the rows say; run python -m deploy.grafana.dashboard\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
