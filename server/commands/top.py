"""``fano top``: the bill of a running server as bars beside its plan and budgets, once or again and again."""

import time
from collections.abc import Callable, Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.commands.bars import BAR_CELLS, HELD, Part, bar
from server.commands.live_reading import LiveReading, ServerSilent
from server.sizes import readable

LABEL_CELLS = 13
SIZE_CELLS = 11
USED, CACHED, TIGHT = "green", "blue", "red"
# From here on a budget is shown as tight.
TIGHT_SHARE = 0.9


def show_once(reading: LiveReading, console: Console) -> None:
    """One picture."""
    console.print(picture(reading, None))


def show_live(look: Callable[[], LiveReading], console: Console, interval_seconds: float) -> None:
    """One picture after the other on the whole terminal, until SIGINT. Goes on while the server is away.

    Raises ``ServerSilent`` if it is from the beginning.
    """
    earlier, reading = None, look()
    with Live(picture(reading, None), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_seconds)
            try:
                earlier, reading = reading, look()
            except ServerSilent as silence:
                live.update(Group(Text(str(silence), style=TIGHT), Text(), picture(reading, None)), refresh=True)
            else:
                live.update(picture(reading, earlier), refresh=True)


def picture(reading: LiveReading, earlier: LiveReading | None) -> RenderableType:
    """Everything about one reading, in 80 columns; rates since an ``earlier`` one. What changes most comes first."""
    lines = [*_head(reading), Text(), *_flow(reading, earlier), *_stock(reading)]
    return Group(*lines, Text(), _device(reading), Text(), _host(reading), Text(), _disk(reading))


def _head(reading: LiveReading) -> list[Text]:
    build = reading.build
    text = Text(build.get("model", "fano"), style="bold")
    text.append(f"  {build.get('dtype', '')} on {build.get('device', '')}, policy {build.get('policy', '')}", "dim")
    stage, seconds = reading.stage, reading.value("fano_stage_seconds")
    told = Text(f"{stage} for {_time(seconds)}", USED if stage == "ready" else TIGHT)
    return [text, told.append(f"  {reading.url}", "dim")]


def _flow(reading: LiveReading, earlier: LiveReading | None) -> list[Text]:
    requests, limits = reading.by_label("fano_requests"), reading.by_label("fano_requests_limit")
    text = _titled("requests")
    for status in ("running", "waiting"):
        count, limit = requests.get(status, 0), limits.get(status, 0)
        style = TIGHT if status == "waiting" and limit and count >= TIGHT_SHARE * limit else ""
        text.append(f"{status} {count:,} of {limit:,}   ", style)
    if saved := requests.get("saved", 0):
        text.append(f"saved {saved:,}")
    return [text, _tokens(reading, earlier)]


def _tokens(reading: LiveReading, earlier: LiveReading | None) -> Text:
    if earlier is None:
        counts, title, unit = reading.by_label("fano_tokens_total"), "tokens", " so far"
        told = {kind: f"{count:,}" for kind, count in counts.items()}
        read = f"{counts.get('prompt', 0) - counts.get('cached', 0):,}"
    else:
        rates, title, unit = reading.tokens_per_second(earlier), "tokens/s", ""
        told = {kind: f"{rate:,.0f}" for kind, rate in rates.items()}
        read = f"{max(0.0, rates.get('prompt', 0) - rates.get('cached', 0)):,.0f}"
    return _titled(title).append(f"read {read}   cached {told.get('cached')}   written {told.get('completion')}{unit}")


def _stock(reading: LiveReading) -> list[Text]:
    lines = []
    for title, counts in (
        ("sessions", reading.memory["sessions"]),
        ("checkpoints", reading.memory["checkpoints"]),
        ("documents", reading.by_label("fano_documents")),
    ):
        lines.append(_titled(title).append("   ".join(f"{name} {n:,}" for name, n in counts.items() if n) or "none"))
    if lag := round(reading.value("fano_index_lag_documents")):
        lines[-1].append(f"   to index {lag:,}", CACHED)
    for title, units in (("state slots", "state_slots"), ("kv blocks", "kv_blocks")):
        counts = reading.memory["device"][units]
        line = _titled(title)
        for status, style in (("used", USED), ("cached", CACHED), ("free", HELD)):
            line.append(f"{status} {counts[status]:,}   ", style)
        lines.append(line.append(f"of {counts['total']:,}"))
    return lines


def _titled(title: str) -> Text:
    return Text().append(f"{title:<{LABEL_CELLS}}", "bold")


def _device(reading: LiveReading) -> Table:
    device = reading.memory["device"]
    table = _table("device", "held", "planned")
    largest = max(1, *(pool["plan_bytes"] for pool in device["pools"].values()))
    units = {"ssm_state": device["state_slots"], "conv_state": device["state_slots"], "kv": device["kv_blocks"]}
    for name, pool in device["pools"].items():
        held, planned = pool["held_bytes"], pool["plan_bytes"]
        parts = _parts(held / largest, units.get(name))
        table.add_row(name, bar(parts), readable(held), readable(planned))
    table.add_row("all", "", readable(device["held_bytes"]), readable(device["plan_bytes"]), style="bold")
    return table


def _parts(share: float, counts: Mapping[str, int] | None) -> list[Part]:
    """A pool whose units are used, cached or free shows how much of it is which."""
    if not counts or not counts["total"]:
        return [(share, HELD)]
    styles = (("used", USED), ("cached", CACHED), ("free", HELD))
    return [(share * counts[status] / counts["total"], style) for status, style in styles]


def _host(reading: LiveReading) -> Table:
    memory = reading.memory
    pools = {**memory["host"]["pools"], "unaccounted": memory["unaccounted_bytes"]}
    table = _budgeted("host", pools, reading.by_label("fano_host_memory_budget_bytes"))
    resident = readable(memory["resident_set_bytes"])
    table.add_row("resident", "with the device's" if memory["device_is_host"] else "", resident, "", style="bold")
    if available := reading.value("fano_host_memory_available_bytes"):
        table.add_row("available", "", readable(round(available)), "")
    return table


def _disk(reading: LiveReading) -> Table:
    disk = reading.memory["disk"]
    table = _budgeted("disk", disk["pools"], reading.by_label("fano_disk_budget_bytes"))
    table.add_row("all", "", readable(disk["bytes"]), "", style="bold")
    table.add_row("available", "", readable(round(reading.value("fano_disk_free_bytes"))), "")
    return table


def _budgeted(title: str, pools: Mapping[str, int], budgets: Mapping[str, int]) -> Table:
    """Pools that hold something; the bar of one with a budget is its share of that, of others that of the largest."""
    table = _table(title, "held", "budget")
    largest = max(1, *pools.values())
    for name, size in pools.items():
        budget = budgets.get(name, 0)
        if not size and not budget:
            continue
        share = size / budget if budget else size / largest
        style = TIGHT if budget and share > TIGHT_SHARE else HELD
        table.add_row(name, bar([(share, style)]), readable(size), readable(budget) if budget else "")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(title, min_width=LABEL_CELLS - 1, max_width=LABEL_CELLS - 1)
    table.add_column("", min_width=BAR_CELLS, max_width=BAR_CELLS)
    for column in columns:
        table.add_column(column, justify="right", min_width=SIZE_CELLS)
    return table


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
