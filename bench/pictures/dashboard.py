"""The dashboard's panels as a picture, drawn from what a real Prometheus has of a server at work.

    python -m bench.pictures.dashboard --out docs/dashboard.png
    python -m bench.pictures.dashboard --prometheus http://127.0.0.1:9090 --minutes 30 --out picture.png

Without a Prometheus that runs it starts a server, clients and a Prometheus for the minutes that are drawn.
Queries, titles, units and places are those of the committed dashboard; nothing is drawn that Prometheus did not answer.
It is not Grafana that draws: the picture shows the panels' content, not how Grafana looks.
"""

import argparse
import io
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import matplotlib
from PIL import Image

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, SymmetricalLogLocator

from bench.peers.servers import Child, free_port
from bench.pictures.load import Load
from bench.pictures.provisioned import Shown, Target, read_panels

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
KEY = "a-key-for-a-picture"
SCRAPE_SECONDS = 2
# Four scrapes, as in Grafana, and some more for what is rare.
WINDOW = "20s"
DOTS_PER_INCH = 90
NUM_POINTS = 240
INCHES_PER_COLUMN, INCHES_PER_ROW = 0.78, 0.33
PAPER, FRAME, INK, FAINT, GRID = "#111217", "#181b1f", "#d8d9da", "#8e9199", "#2c3038"
LINES = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#b877d9", "#f2495c", "#37872d", "#8ab8ff", "#c8f2c2", "#e0b400",
         "#ffb357", "#a352cc")  # fmt: skip
BINARY, DECIMAL = ("", "Ki", "Mi", "Gi", "Ti"), ("", "k", "M", "G", "T")


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel: its legend, and values over time."""

    legend: str
    times: Sequence[float]
    values: Sequence[float]
    is_limit: bool


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when is drawn, in Unix seconds."""

    start: float
    end: float

    @property
    def step(self) -> float:
        """Seconds between two points."""
        return max(1.0, (self.end - self.start) / NUM_POINTS)


class Asked:
    """A Prometheus at ``url``."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=60)

    def lines(self, target: Target, span: Span) -> list[Line]:
        """What a query says of that time, one line for each of its series."""
        parameters = {"query": target.expr, "start": str(span.start), "end": str(span.end), "step": str(span.step)}
        reply = self._http.get("/api/v1/query_range", params=parameters).raise_for_status().json()
        return [_line(target, series) for series in reply["data"]["result"]]


def _line(target: Target, series: Mapping[str, Any]) -> Line:
    legend = re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda label: series["metric"].get(label[1], ""), target.legend)
    points = [(float(at), float(value)) for at, value in series["values"]]
    finite = [(at, value) for at, value in points if math.isfinite(value)]
    return Line(legend, [at for at, _ in finite], [value for _, value in finite], target.is_limit)


def written(value: float, unit: str) -> str:
    """A value as its panel says it: 1.5 MiB, 20 ms, 12 %."""
    if unit == "percentunit":
        return f"{value:.0%}" if value == 0 or abs(value) >= 0.1 else f"{value:.1%}"
    if unit == "s":
        for size, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size or size == 1e-6:
                return f"{value / size:.3g} {name}" if value else "0 s"
    base, names = (1024, BINARY) if unit == "bytes" else (1000, DECIMAL)
    power = 0 if value == 0 else min(len(names) - 1, max(0, int(math.log(abs(value), base) + 1e-9)))
    end = {"bytes": "B", "decbits": "b", "ops": "/s"}.get(unit, "")
    scaled = value / base**power
    number = f"{scaled:.0f}" if scaled >= 100 or float(scaled).is_integer() else f"{scaled:.3g}"
    return f"{number} {names[power]}{end}".strip()


def draw(panels: Sequence[Shown], prometheus: Asked, span: Span) -> Figure:
    """All panels in their places."""
    height = max(panel.place["y"] + panel.place["h"] for panel in panels)
    figure = Figure(figsize=(24 * INCHES_PER_COLUMN, height * INCHES_PER_ROW), facecolor=PAPER)
    for row in dict.fromkeys(panel.row for panel in panels):
        top = min(panel.place["y"] for panel in panels if panel.row == row)
        figure.text(0.006, 1 - (top - 0.25) / height, row, color=INK, fontsize=11, weight="bold", va="bottom")
    for panel in panels:
        figure.add_artist(_frame(panel.place, height))
        lines = [line for target in panel.targets for line in prometheus.lines(target, span)]
        axes = figure.add_axes(_box(panel.place, height))
        axes.set_facecolor(FRAME)
        axes.spines[:].set_visible(False)
        if panel.type == "stat":
            _number(axes, panel, lines)
        else:
            _graph(axes, panel, lines, span)
    return figure


def _frame(place: Mapping[str, int], height: int) -> Rectangle:
    gap_x, gap_y = 0.08 / 24, 0.12 / height
    corner = (place["x"] / 24 + gap_x, 1 - (place["y"] + place["h"]) / height + gap_y)
    width, tall = place["w"] / 24 - 2 * gap_x, place["h"] / height - 2 * gap_y
    return Rectangle(corner, width, tall, facecolor=FRAME, edgecolor=GRID, linewidth=0.8, zorder=-1)


def _box(place: Mapping[str, int], height: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of the axes in parts of the figure; the title and the legend stand outside."""
    left, top = place["x"] / 24, place["y"] / height
    width, tall = place["w"] / 24, place["h"] / height
    line = 1 / height
    if place["h"] < 8:
        return left + 0.006, 1 - top - tall + 0.3 * line, width - 0.012, tall - 0.6 * line
    return left + 0.036, 1 - top - tall + 2.2 * line, width - 0.046, tall - 3.3 * line


def _number(axes: Axes, panel: Shown, lines: Sequence[Line]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.02, 0.96, panel.title, transform=axes.transAxes, color=INK, fontsize=9, va="top")
    now = max((line.times[-1] for line in lines if line.times), default=0.0)
    told = [line for line in lines if line.times and line.times[-1] == now]
    is_name = panel.targets[0].legend.startswith("{{")
    for number, line in enumerate(told):
        middle = (number + 0.5) / len(told)
        value = line.legend if is_name else written(line.values[-1], panel.unit)
        axes.text(middle, 0.36, value, transform=axes.transAxes, color=LINES[0], fontsize=17, ha="center", va="center")
        if len(told) > 1:
            axes.text(middle, 0.1, line.legend, transform=axes.transAxes, color=FAINT, fontsize=8, ha="center")


def _graph(axes: Axes, panel: Shown, lines: Sequence[Line], span: Span) -> None:
    axes.set_title(panel.title, color=INK, fontsize=9, loc="left", pad=5)
    # What is nought all the time only crowds the legend, where there are many.
    shown = [line for line in lines if line.is_limit or len(lines) <= 6 or any(line.values)]
    colors = {id(line): LINES[number % len(LINES)] for number, line in enumerate(shown)}
    if panel.is_stack:
        _stack(axes, [line for line in shown if not line.is_limit], colors)
    for line in shown:
        if line.is_limit or not panel.is_stack:
            style = (0, (6, 4)) if line.is_limit else "-"
            color = FAINT if line.is_limit else colors[id(line)]
            axes.plot(line.times, line.values, color=color, linewidth=1.1, linestyle=style, label=line.legend)
    _scale(axes, panel, [value for line in shown for value in line.values])
    axes.set_xlim(span.start, span.end)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: time.strftime("%H:%M", time.gmtime(at))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, panel.unit)))
    axes.minorticks_off()
    axes.tick_params(colors=FAINT, labelsize=7, length=0)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    columns = max(2, panel.place["w"] // 2)
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(-0.01, -0.1), ncols=columns, fontsize=7, frameon=False, labelcolor=INK,
        handlelength=1.2, columnspacing=1.0, borderaxespad=0.2,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _scale(axes: Axes, panel: Shown, values: Sequence[float]) -> None:
    """From nought, or by powers; bytes have marks at powers of two."""
    is_binary = panel.unit == "bytes"
    if not panel.is_logarithmic or not any(value > 0 for value in values):
        axes.set_ylim(bottom=0)
        top = axes.get_ylim()[1]
        # 1, 2, 4, ... of a unit of 1,024.
        step = 2.0 ** math.ceil(math.log2(max(top, 1e-9) / 5))
        axes.yaxis.set_major_locator(MultipleLocator(step) if is_binary else MaxNLocator(5))
    elif 0 in values:
        axes.set_yscale("symlog")
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=1000, linthresh=1))
    else:
        axes.set_yscale("log", base=2 if is_binary else 10)
        times = max(values) / min(values)
        if is_binary:
            axes.yaxis.set_major_locator(LogLocator(base=2 if times < 32 else 16, numticks=12))
        else:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if times < 100 else (1,), numticks=12))


def _stack(axes: Axes, lines: Sequence[Line], colors: Mapping[int, str]) -> None:
    times = sorted({at for line in lines for at in line.times})
    below = [0.0] * len(times)
    for line in lines:
        values = dict(zip(line.times, line.values, strict=True))
        above = [floor + values.get(at, 0.0) for at, floor in zip(times, below, strict=True)]
        color = colors[id(line)]
        axes.fill_between(times, below, above, color=color, alpha=0.45, linewidth=0)
        axes.plot(times, above, color=color, linewidth=0.9, label=line.legend)
        below = above


@contextmanager
def at_work(seconds: float, directory: Path) -> Iterator[str]:
    """A server under load for so long, and a Prometheus that looked at it; its URL."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        raise SystemExit("prometheus is not installed (on Debian: apt-get install prometheus); or name one that runs")
    server = Child(directory / "fano.log")
    settings = {"FANO_API_KEY": KEY, "FANO_INFORMATION": "true", "FANO_MAX_SEQUENCES": "4"}
    fano = str(Path(sys.executable).with_name("fano"))
    server.start([fano, "serve", "--data-dir", str(directory / "data")], "/readyz", settings)
    config = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "5s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "fano", "authorization": {"credentials": KEY}, "static_configs": [
            {"targets": [server.client.base_url.netloc.decode()], "labels": {"instance": "fano:8000"}}]}],
    }  # fmt: skip
    # JSON is YAML.
    (directory / "prometheus.yml").write_text(httpx.Request("POST", "http://x", json=config).content.decode())
    url = f"http://127.0.0.1:{free_port()}"
    command = [prometheus, f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'tsdb'}",
               f"--web.listen-address={url.removeprefix('http://')}"]  # fmt: skip
    with (directory / "prometheus.log").open("wb") as log:
        watcher = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(f"{url}/-/ready")
        load = Load(str(server.client.base_url), KEY, seed=3)
        load.start()
        time.sleep(seconds)
        load.stop()
        if load.wrong:
            raise SystemExit(f"the load saw what it should not: {load.wrong[:3]}")
        yield url
    finally:
        watcher.terminate()
        watcher.wait()
        server.kill()


def _wait_for(url: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=2).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


def picture(url: str, seconds: float, out: Path, num_rows: int) -> None:
    """Draw the last ``seconds`` that the Prometheus at ``url`` knows, in the first rows of the dashboard."""
    now = time.time()
    panels = read_panels(window=WINDOW)
    rows = list(dict.fromkeys(panel.row for panel in panels))[:num_rows]
    figure = draw([panel for panel in panels if panel.row in rows], Asked(url), Span(now - seconds, now))
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DOTS_PER_INCH)
    # There are few colours: with a palette it has a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> None:
    """Read the options, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0, help="how long the time is that is drawn")
    parser.add_argument("--prometheus", help="URL of one that runs; default: start one, with a server and clients")
    parser.add_argument("--rows", type=int, default=99, help="rows of the dashboard from the top; default all")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    if options.prometheus:
        picture(options.prometheus, seconds, options.out, options.rows)
        return
    with tempfile.TemporaryDirectory() as directory, at_work(seconds, Path(directory)) as url:
        picture(url, seconds, options.out, options.rows)


if __name__ == "__main__":
    main()
