"""The dashboard: it is what its source says, and it asks for what the server publishes."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from stack.prometheus import promtool

from bench.pictures.provisioned import read_dashboard, read_panels
from deploy.grafana import dashboard
from server.measures.measure import Kind
from server.measures.page import measures

ALERTS = Path(dashboard.__file__).parents[1] / "prometheus" / "alerts.yml"
SUFFIXES = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count"), Kind.COUNTER: ("",), Kind.GAUGE: ("",)}
SELECTOR = re.compile(r'\b((?:fano|process|vllm)[a-z_:]*[a-z])\b(?:\{((?:[^"}]|"[^"]*")*)\})?')
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
PUBLISHED = {measure.name + suffix: measure for measure in measures() for suffix in SUFFIXES[measure.kind]}
# Every expression, with where it stands.
EXPRESSIONS = [
    (f"{panel.title}: {target.legend}", target.expr) for panel in read_panels("1m") for target in panel.targets
]


def test_the_file_is_what_the_source_builds() -> None:
    assert dashboard.FILE.read_text() == dashboard.build(), "run python -m deploy.grafana.dashboard"


def test_grafanas_own_types_read_all_of_it() -> None:
    register_default_plugins()
    whole = json.loads(dashboard.FILE.read_text())
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(whole))) == whole


def test_each_panel_says_what_it_shows_and_what_to_do() -> None:
    for panel in read_panels("1m"):
        shows, _, when_bad = panel.description.partition("\n\n**When it is bad:** ")
        assert len(shows) > 30 and len(when_bad) > 30, panel.title
        assert panel.targets and all(target.legend for target in panel.targets), panel.title


def test_each_panel_has_a_number_and_a_place_of_its_own() -> None:
    panels = read_dashboard()["panels"]
    assert max(Counter(panel["id"] for panel in panels).values()) == 1
    places = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"], p["gridPos"]["h"]) for p in panels]
    for (x, y, w, h), (left, top, width, height) in combinations(places, 2):
        assert x + w <= left or left + width <= x or y + h <= top or top + height <= y
    assert all(x + w <= 24 for x, _, w, _ in places)


def test_what_an_operator_has_to_see_is_there() -> None:
    asked = " ".join(expr for _, expr in EXPRESSIONS)
    for name in """fano_device_memory_bytes fano_device_memory_plan_bytes fano_host_memory_bytes fano_disk_bytes
        fano_request_kv_bytes fano_request_state_bytes fano_request_archive_bytes fano_context_information_bits
        fano_state_capacity_bits fano_state_recall_bits fano_sessions fano_prefix_total fano_kv_blocks fano_state_slots
        fano_time_to_first_token_seconds fano_inter_token_seconds fano_queue_seconds fano_step_seconds
        fano_retrieval_total fano_retrieval_seconds fano_refusals_total fano_documents""".split():
        assert re.search(rf"\b{name}(?:_bucket|_sum|_count)?\b", asked), name


@pytest.mark.parametrize(
    ("where", "expression"),
    [*EXPRESSIONS, ("alerts.yml", ALERTS.read_text())],
    ids=[*(where for where, _ in EXPRESSIONS), "alerts"],
)
def test_what_is_asked_for_is_published(where: str, expression: str) -> None:
    found = [(name, labels) for name, labels in SELECTOR.findall(expression) if name != "fano_api_key"]
    assert found or "ALERTS" in expression
    for name, labels in found:
        assert name in PUBLISHED, f"{where} asks for {name}, which nobody publishes"
        known = PUBLISHED[name].labels
        for label, sign, value in MATCHER.findall(labels):
            if label in ("instance", "job"):
                continue
            assert label in known, f"{where}: {name} has no label {label}"
            values = known[label]
            if isinstance(values, str):
                continue
            wanted = value.split("|") if sign in ("=~", "!~") else [value]
            assert set(wanted) <= set(values), f"{where}: {name} has no {label}={value}"
        for labels_by in re.findall(r"by \(([a-z, ]*)\)", expression) if where != "alerts.yml" else ():
            assert set(labels_by.replace(" ", "").split(",")) <= {"", "le", "instance", *known}, where


def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [f"      - record: panel:{number}\n        expr: >-\n          {expr}\n" for number, (_, expr) in
             enumerate(EXPRESSIONS)]  # fmt: skip
    file = tmp_path / "panels.yml"
    file.write_text("groups:\n  - name: panels\n    rules:\n" + "".join(rules))
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(EXPRESSIONS)} rules found" in checked.stdout
