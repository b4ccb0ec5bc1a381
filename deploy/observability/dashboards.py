"""The dashboards' JSON out of their panels, through Grafana's own builders.

    python -m deploy.observability.dashboards       writes deploy/observability/grafana/*.json

Needs grafana-foundation-sdk, which only developers install: the JSON is committed, and a test proves it is current.
"""

from __future__ import annotations

import itertools

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models

from deploy.observability.bundle import DASHBOARDS
from deploy.observability.names import JOB
from deploy.observability.panels import SERVICE, WORKERS_AND_TRANSFERS, Kind, Panel, Query, Row

_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_VARIABLES = {
    "model": f'label_values(pdserve_worker_up{{job="{JOB}"}}, model)',
    "role": f'label_values(pdserve_worker_up{{job="{JOB}", model=~"$model"}}, role)',
    "slo_class": f'label_values(pdserve_slo_requests_total{{job="{JOB}", model=~"$model"}}, slo_class)',
}
_DASHES = models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]})
_NO_FILL = models.DynamicConfigValue("custom.fillOpacity", 0)
_APART = models.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "limits"})
_HEIGHTS = {Kind.NUMBER: 4, Kind.LINES: 8, Kind.STACKED: 8}


def texts() -> dict[str, str]:
    """File name -> JSON."""
    made = {
        "service": _dashboard("pdserve-service", "pdserve: service", SERVICE),
        "workers": _dashboard("pdserve-workers", "pdserve: workers and transfers", WORKERS_AND_TRANSFERS),
    }
    return {
        f"{name}.json": JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"
        for name, board in made.items()
    }


def _dashboard(uid: str, title: str, rows: tuple[Row, ...]) -> build.Dashboard:
    board = (
        build.Dashboard(title)
        .uid(uid)
        .tags(["pdserve"])
        .editable()
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("pdserve")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["pdserve"])
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(build.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for name, query in _VARIABLES.items():
        board.with_variable(_variable(name, query))
    panel_ids = itertools.count(1)
    for row in rows:
        board.with_row(build.Row(row.title).id(next(panel_ids)))
        for panel in row.panels:
            made = _number(panel) if panel.kind is Kind.NUMBER else _lines(panel)
            board.with_panel(made.id(next(panel_ids)))
    return board


def _variable(name: str, query: str) -> build.QueryVariable:
    """Chooses among a label's values; all of them (and series without the label) unless told otherwise."""
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    return (
        build.QueryVariable(name)
        .query(query)
        .datasource(_SOURCE)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def _number(panel: Panel) -> stat.Panel:
    made = stat.Panel().title(panel.title).description(panel.text).datasource(_SOURCE).unit(panel.unit)
    made.height(_HEIGHTS[panel.kind]).span(panel.width).color_mode(kinds.BigValueColorMode.NONE)
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    for index, query in enumerate(panel.queries):
        made.with_target(_target(index, query))
    return made


def _lines(panel: Panel) -> timeseries.Panel:
    made = timeseries.Panel().title(panel.title).description(panel.text).datasource(_SOURCE).unit(panel.unit).min(0)
    made.height(_HEIGHTS[panel.kind]).span(panel.width).line_width(2).show_points(kinds.VisibilityMode.NEVER)
    made.legend(
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    made.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
    if panel.kind is Kind.STACKED:
        made.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL)).fill_opacity(40)
    for index, query in enumerate(panel.queries):
        made.with_target(_target(index, query))
        if query.dashed:
            made.override_by_query(_ref_id(index), [_DASHES, _NO_FILL, _APART])
    return made


def _target(index: int, query: Query) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(query.expression).legend_format(query.legend).range()
    return made.ref_id(_ref_id(index)).datasource(_SOURCE)


def _ref_id(index: int) -> str:
    return "ABCDEFGH"[index]


def main() -> None:
    """Write them where `pdserve observability` finds them."""
    for name, text in texts().items():
        (DASHBOARDS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
