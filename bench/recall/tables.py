"""The results as the tables of bench/RESULTS.md."""

from collections.abc import Iterable

from bench.recall.archive import BASELINES, PRODUCT
from bench.recall.intervals import wilson
from bench.recall.ledger import Cell, Ledger


def write_tables(ledger: Ledger) -> str:
    """All stages, as Markdown; what was not measured is left out."""
    parts = []
    if found := ledger.of("found"):
        parts.append(_found(found))
    if answers := ledger.of("answers"):
        parts.append(_answers(answers))
    if read := ledger.of("reading"):
        parts.append(_reading(read))
    return "\n\n".join(parts)


def _found(cells: list[Cell]) -> str:
    ways = (PRODUCT, *BASELINES)
    lines = [
        f"| task | tokens | texts | asked | {PRODUCT}: found (95 %) | in the first | {' | '.join(BASELINES)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |" + " ---: |" * len(BASELINES),
    ]
    for cell, group in _groups(cells):
        hits = {way: cell["groups"][group][way] for way in ways}
        own = hits[PRODUCT]
        low, high = own["interval"]
        others = " | ".join(_percent(hits[way]["found"], own["asked"]) for way in BASELINES)
        best = f"**{_percent(own['found'], own['asked'])}** ({100 * low:.1f} to {100 * high:.1f})"
        first = _percent(own["first"], own["asked"])
        lines.append(
            f"| {cell['task']}, {group} | {cell['tokens']:,} | {cell['documents']} | {own['asked']} | {best} | {first} "
            f"| {others} |"
        )
    return "\n".join(lines)


def _answers(cells: list[Cell]) -> str:
    lines = [
        "| task | tokens | asked | mode | found | of them right (95 %) | right | exact | refused | F1 | wrong spans |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cell, group in _groups(cells):
        marks = cell["groups"][group]
        low, high = wilson(marks["right_found"], marks["found"])
        lines.append(
            f"| {cell['task']}, {group} | {cell['tokens']:,} | {marks['asked']} | {cell['way']} | {marks['found']} "
            f"| {marks['right_found']} ({100 * low:.0f} to {100 * high:.0f} %) | {marks['right']} | {marks['exact']} "
            f"| {marks['told_nothing']} | {100 * marks['f1']:.1f} | {cell['num_spans_wrong']} of {cell['num_spans']} |"
        )
    return "\n".join(lines)


def _reading(cells: list[Cell]) -> str:
    lines = [
        "| task | tokens | policy | right | of | CPU s to read | CPU s an answer |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for cell, group in _groups(cells):
        marks = cell["groups"][group]
        lines.append(
            f"| {cell['task']}, {group} | {cell['tokens']:,} | {cell['way']} | {marks['right']} | {marks['asked']} "
            f"| {cell['read_cpu_seconds']} | {cell['answer_cpu_seconds']} |"
        )
    return "\n".join(lines)


def _groups(cells: list[Cell]) -> Iterable[tuple[Cell, str]]:
    rows = [(cell, group) for cell in cells for group in cell["groups"]]
    return sorted(rows, key=lambda row: (row[0]["task"], row[1], row[0]["tokens"], row[0].get("way") or ""))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}"
