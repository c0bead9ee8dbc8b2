"""What a person reads: tables in Markdown, ready for a page of results."""

from collections.abc import Sequence

from bench.peers.engines import LLAMA, TRANSFORMERS
from bench.peers.records import Record


def speed_table(rows: Sequence[Record]) -> str:
    """Medians by the wall-clock with their spread, by CPU time, and ratios within a repetition."""
    lines = [
        "| model | what | depth | streams | engine | tokens/s | least to most | a CPU second "
        "| to llama.cpp | to transformers |",
        "| --- | --- | ---: | ---: | --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        spread = " to ".join(number(rate) for rate in row["wall_spread"])
        cells = [row["model"], row["phase"], f"{row['depth']:,}", row["streams"], f"{row['engine']} {row['dtype']}"]
        cells += [number(row["wall_tps"]), spread, number(row["cpu_tps"])]
        cells += [times(row[f"to_{engine}"]) for engine in (LLAMA, TRANSFORMERS)]
        lines.append(line(cells))
    return "\n".join(lines)


def divergence_table(records: Sequence[Record]) -> str:
    """KL divergence from float32, in nats."""
    lines = [
        "| checkpoint | engine | mean KL | 99 % | same first choice | tokens | against |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in records:
        cells = [row["model"], f"{row['engine']} {row['dtype']}", f"{row['mean']:.1e}", f"{row['p99']:.1e}"]
        lines.append(line([*cells, f"{row['same_choice']:.2%}", f"{row['num_tokens']:,}", row["reference"]]))
    return "\n".join(lines)


def peak_table(records: Sequence[Record]) -> str:
    """Highest resident set of a process that reads one prompt."""
    lines = [
        "| model | tokens | engine | after loading, MiB | peak, MiB |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for row in records:
        sizes = [f"{row[key] / 2**20:,.0f}" for key in ("loaded_bytes", "peak_bytes")]
        lines.append(line([row["model"], f"{row['depth']:,}", f"{row['engine']} {row['dtype']}", *sizes]))
    return "\n".join(lines)


def target_table(verdicts: Sequence[Record]) -> str:
    """Targets and what was measured."""
    lines = [
        "| model | what | depth | streams | Fano | peer's best | target | measured | in CPU time | |",
        "| --- | --- | ---: | ---: | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in verdicts:
        cells = [row["model"], row["phase"], f"{row['depth']:,}", row["streams"], row["side"], row["peer"]]
        cells += [f"{row['target']}x", times(row["wall_seconds"]), times(row["cpu_seconds"])]
        lines.append(line([*cells, "hit" if row["is_hit"] else "**missed**"]))
    return "\n".join(lines)


def missing_lines(missing: Sequence[Record]) -> str:
    """Engines that are not in the tables, and how to get them."""
    return "\n".join(f"NOT MEASURED: {row['engine']} {row['dtype']}: {row['remedy']}" for row in missing)


def line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def times(ratio: Sequence[float] | None) -> str:
    """Median, and least to most where they differ."""
    if ratio is None:
        return ""
    middle, least, most = ratio
    return f"{middle:.2f}x" if least == most else f"{middle:.2f}x ({least:.2f} to {most:.2f})"
