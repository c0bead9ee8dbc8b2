"""The alerts, with promtool: each fires when it should, rests when it should, and ends by itself."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from stack.alert_cases import CASES, Case
from stack.prometheus import promtool

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
ALERTS = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}  # fmt: skip


def test_the_configuration_is_whole(tmp_path: Path) -> None:
    """As Prometheus reads it, with the file of the key, which is only where the stack runs."""
    key = tmp_path / "fano_api_key"
    key.write_text("a-long-random-string")
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert "/run/secrets/fano_api_key" in config
    (tmp_path / "prometheus.yml").write_text(config.replace("/run/secrets/fano_api_key", str(key)))
    (tmp_path / "alerts.yml").write_text(RULES.read_text())
    checked = promtool("check", "config", tmp_path / "prometheus.yml")
    assert checked.returncode == 0 and f"{len(ALERTS)} rules found" in checked.stdout, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_means_and_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "action"}
    assert "$labels.instance" in rule["annotations"]["summary"] and len(rule["annotations"]["action"]) > 60


def test_the_page_tells_of_each_alert() -> None:
    rows = dict(re.findall(r"^\| `(Fano\w+)` \| (\w+) \|", (DEPLOY / "README.md").read_text(), re.MULTILINE))
    assert rows == {name: rule["labels"]["severity"] for name, rule in ALERTS.items()}


def test_each_alert_has_series_that_make_it_fire_rest_and_end() -> None:
    fires = {case.alert for case in CASES if case.fires_at}
    never = {case.alert for case in CASES if not case.fires_at}
    ends = {case.alert for case in CASES if case.fires_at and max(case.rests_at, default=0) > max(case.fires_at)}
    assert fires == never == ends == set(ALERTS)


def test_each_alert_is_provoked_in_a_server_that_runs() -> None:
    source = (Path(__file__).parent / "test_live_alerts.py").read_text()
    for step in ("expect", "expect_end"):
        assert set(re.findall(rf'\b{step}\(prometheus, "(\w+)"\)', source)) == set(ALERTS)


def expected(case: Case) -> dict[str, Any]:
    """The alert of a case as promtool wants to hear of it: with all its labels and annotations."""
    rule = ALERTS[case.alert]
    annotations = dict(rule["annotations"])
    for label, value in case.labels.items():
        annotations = {key: text.replace(f"{{{{ $labels.{label} }}}}", value) for key, text in annotations.items()}
    return {"exp_labels": {**case.labels, **rule["labels"]}, "exp_annotations": annotations}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.name}")
def test_an_alert_over_time(case: Case, tmp_path: Path) -> None:
    at = [(minute, [expected(case)]) for minute in case.fires_at] + [(minute, []) for minute in case.rests_at]
    unit = {
        "interval": "15s",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [
            {"eval_time": f"{round(60 * minute)}s", "alertname": case.alert, "exp_alerts": alerts}
            for minute, alerts in sorted(at, key=lambda each: each[0])
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": [unit]}))
    tested = promtool("test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr
