"""The results as the tables of bench/RESULTS.md: a row for each task and group, a column for each length."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from bench.recall.archive import BASELINES, PRODUCT
from bench.recall.intervals import wilson
from bench.recall.ledger import Cell, Ledger

WAYS = (PRODUCT, *BASELINES)
POOLED = "questions"


def write_tables(ledger: Ledger) -> str:
    """All stages, as Markdown; what was not measured is left out."""
    parts = []
    if found := [cell for cell in ledger.of("found") if cell["task"] != POOLED]:
        parts.append(_by_length("Found by the product, percent", found, _found))
        longest = max(cell["tokens"] for cell in found)
        parts.append(_beside(f"At {longest:,} tokens", [cell for cell in found if cell["tokens"] == longest]))
    if questions := ledger.of("found", POOLED):
        parts.append(_questions(questions))
        longest = max(cell["tokens"] for cell in questions)
        parts.append(_beside("Questions by source", [cell for cell in questions if cell["tokens"] == longest]))
    for way in ("verbatim", "grounded"):
        if answers := [cell for cell in ledger.of("answers") if cell["way"] == way]:
            parts.append(_by_length(f"Answers, {way}: right of found, of asked", answers, _answered))
            parts.append(_marks(way, answers))
    for way in ("window", "full"):
        if read := [cell for cell in ledger.of("reading") if cell["way"] == way]:
            parts.append(_by_length(f"Read without archive, policy {way}: right of asked", read, _read))
    return "\n\n".join(parts)


def _by_length(title: str, cells: Sequence[Cell], show: Callable[[Cell, str], str]) -> str:
    lengths = sorted({cell["tokens"] for cell in cells})
    rows: dict[str, dict[int, str]] = defaultdict(dict)
    for cell in cells:
        for group in cell["groups"]:
            rows[f"{cell['task']}, {group}"][cell["tokens"]] = show(cell, group)
    lines = [f"| {title} | {' | '.join(f'{length:,}' for length in lengths)} |", "| --- |" + " ---: |" * len(lengths)]
    lines += [f"| {row} | {' | '.join(shown.get(n, '') for n in lengths)} |" for row, shown in sorted(rows.items())]
    return "\n".join(lines)


def _found(cell: Cell, group: str) -> str:
    hits = cell["groups"][group][PRODUCT]
    shown = _percent(hits["found"], hits["asked"])
    return shown if hits["asked"] >= 300 else f"{shown} of {hits['asked']}"


def _answered(cell: Cell, group: str) -> str:
    marks = cell["groups"][group]
    return f"{marks['right_found']} / {marks['found']} / {marks['asked']}"


def _read(cell: Cell, group: str) -> str:
    marks = cell["groups"][group]
    return f"{marks['right']} / {marks['asked']}"


def _beside(title: str, cells: Sequence[Cell]) -> str:
    """The product with its interval, and the baselines: found, and in brackets in the first passage."""
    lines = [
        f"| {title} | asked | {PRODUCT} | 95 % | {' | '.join(BASELINES)} |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(BASELINES),
    ]
    for cell in cells:
        for group, ways in cell["groups"].items():
            own = ways[PRODUCT]
            low, high = own["interval"]
            shown = [f"{_percent(hits['found'], own['asked'])} ({_percent(hits['first'], own['asked'])})"
                     for hits in (ways[way] for way in WAYS)]  # fmt: skip
            bounds = f"{100 * low:.1f} to {100 * high:.1f}"
            others = " | ".join(shown[1:])
            lines.append(f"| {cell['task']}, {group} | {own['asked']} | **{shown[0]}** | {bounds} | {others} |")
    return "\n".join(lines)


def _questions(cells: Sequence[Cell]) -> str:
    """All sources together: in the first passage and among the first five, with intervals."""
    lines = [f"| Questions, all sources | asked | {' | '.join(WAYS)} |", "| --- | ---: |" + " ---: |" * len(WAYS)]
    for cell in cells:
        asked = sum(ways[PRODUCT]["asked"] for ways in cell["groups"].values())
        for key, name in (("first", "hit@1"), ("found", "hit@5")):
            shown = []
            for way in WAYS:
                hits = sum(ways[way][key] for ways in cell["groups"].values())
                low, high = wilson(hits, asked)
                shown.append(f"{_percent(hits, asked)} ({100 * low:.1f} to {100 * high:.1f})")
            lines.append(f"| {cell['tokens']:,}, {name} | {asked} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _marks(way: str, cells: Sequence[Cell]) -> str:
    """Over all lengths: what the counts by length leave out."""
    lines = [
        f"| {way}, all lengths | asked | found | right of found | 95 % | exact | refused | F1 | wrong spans |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows: dict[str, list[Cell]] = defaultdict(list)
    spans: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for cell in cells:
        spans[cell["task"]][0] += cell["num_spans_wrong"]
        spans[cell["task"]][1] += cell["num_spans"]
        for group, marks in cell["groups"].items():
            rows[f"{cell['task']}, {group}"].append(marks)
    for row, marks in sorted(rows.items()):
        asked, found, right, exact, refused = (
            sum(each[key] for each in marks) for key in ("asked", "found", "right_found", "exact", "told_nothing")
        )
        low, high = wilson(right, found)
        f1 = sum(each["f1"] * each["asked"] for each in marks) / asked
        wrong, checked = spans[row.partition(",")[0]]
        bounds = f"{100 * low:.0f} to {100 * high:.0f} %"
        lines.append(
            f"| {row} | {asked} | {found} | {right} | {bounds} | {exact} | {refused} | {100 * f1:.1f} "
            f"| {wrong} of {checked} |"
        )
    return "\n".join(lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}"
