"""The picture of the dashboard: it draws what Prometheus answered, in the panels' places, and says values in units."""

import json
from pathlib import Path

import pytest

from bench.pictures import dashboard
from bench.pictures.dashboard import Asked, Line, Span, draw, written
from bench.pictures.provisioned import DASHBOARD, Target, read_panels


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (1536, "bytes", "1.5 KiB"), (2 << 30, "bytes", "2 GiB"), (0, "bytes", "0 B"),
        (22_642_688, "decbits", "22.6 Mb"),
        (0.0021, "s", "2.1 ms"), (90, "s", "90 s"), (0, "s", "0 s"), (0.5, "percentunit", "50%"),
        (0.013, "percentunit", "1.3%"), (1234, "ops", "1.23 k/s"), (7, "short", "7"), (1e6, "short", "1 M"),
    ],
)  # fmt: skip
def test_a_value_is_said_in_its_unit(value: float, unit: str, said: str) -> None:
    assert written(value, unit) == said


def test_a_line_has_its_labels_and_only_what_is_a_number() -> None:
    target = Target("x", "{{decision}}: {{ reason }}", False, True)
    series = {"metric": {"decision": "nothing", "reason": "question"}, "values": [[1, "NaN"], [2, "3"], [3, "+Inf"]]}
    assert dashboard._line(target, series) == Line("nothing: question", [2.0], [3.0], True)


class Scripted(Asked):
    """Answers each query with a line of the same height: its place among all queries."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def lines(self, target: Target, span: Span) -> list[Line]:
        self.asked.append(target.expr)
        return [Line(target.legend, [span.start, span.end], [len(self.asked), len(self.asked)], target.is_limit)]


def test_every_panel_is_drawn_from_its_own_queries(tmp_path: Path) -> None:
    panels, prometheus = read_panels("20s"), Scripted()
    figure = draw(panels, prometheus, Span(0, 100))
    assert prometheus.asked == [target.expr for panel in panels for target in panel.targets]
    # The i-th query has the value i.
    numbers = iter(range(1, len(prometheus.asked) + 1))
    for panel, axes in zip(panels, figure.axes, strict=True):
        wanted = {target.legend: next(numbers) for target in panel.targets}
        if panel.type == "stat":
            said = {text.get_text() for text in axes.texts}
            assert panel.title in said
            if "{{" not in panel.targets[0].legend:
                assert {written(value, panel.unit) for value in wanted.values()} <= said
            continue
        assert axes.get_title(loc="left") == panel.title
        drawn = {str(line.get_label()): list(line.get_ydata()) for line in axes.get_lines()}
        assert set(drawn) == set(wanted)
        if not panel.is_stack:
            assert drawn == {legend: [value, value] for legend, value in wanted.items()}
    figure.savefig(tmp_path / "picture.png", dpi=30)


def test_a_stack_is_a_sum() -> None:
    panel = next(panel for panel in read_panels("20s") if panel.is_stack)

    class Two(Scripted):
        def lines(self, target: Target, span: Span) -> list[Line]:
            return [Line(name, [0, 1], [2.0, 3.0], False) for name in "ab"]

    (axes,) = draw([panel], Two(), Span(0, 1)).axes
    first = [list(line.get_ydata()) for line in axes.get_lines()][:2]
    assert first == [[2.0, 3.0], [4.0, 6.0]]


def test_a_variable_that_is_not_known_is_refused(tmp_path: Path) -> None:
    changed = DASHBOARD.read_text().replace("$__rate_interval", "$__range", 1)
    (tmp_path / "dashboard.json").write_text(json.dumps(json.loads(changed)))
    with pytest.raises(ValueError, match=r"has a variable other than \$__rate_interval, \$instance"):
        read_panels("1m", path=tmp_path / "dashboard.json")
