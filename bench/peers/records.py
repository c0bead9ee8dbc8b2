"""What was measured: a file of JSON lines that grows as it comes, and the medians and ratios of its lines."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.peers.engines import FANO, LLAMA, TRANSFORMERS, Side

Record = dict[str, Any]
PREFILL, DECODE = "prefill", "decode"
RUN, TURN, PEAK, DIVERGENCE, MISSING = "run", "turn", "peak", "divergence", "missing"


class OtherRun(Exception):
    """The file holds measurements of something else, and figures of both would be mixed."""


class Records:
    """Lines of ``path``. The first says of what run they are; a run that goes on measures only what is not there."""

    def __init__(self, path: Path, run: Record) -> None:
        """Raises ``OtherRun`` where the file's run was another: other versions, weights, threads or steps."""
        self.path = path
        self.lines: list[Record] = []
        if path.exists():
            whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
            self.lines = [json.loads(line) for line in whole.splitlines()]
            # A line that a kill cut off must not stand before the next one.
            path.write_text(whole + "\n" if whole else "", encoding="utf-8")
        if not self.lines:
            self.add({"what": RUN, **run})
        for key, value in run.items():
            if self.lines[0].get(key) != value:
                told = f"{key} is {value!r}, but {path} holds measurements with {self.lines[0].get(key)!r}"
                raise OtherRun(f"{told}; name another file with --out, or move this one away")

    def add(self, record: Record) -> None:
        """Write a line down at once: a run may be killed at any time."""
        self.lines.append(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def of(self, what: str, **equal: object) -> list[Record]:
        """Lines of one kind, with these values."""
        return [line for line in self.lines if line["what"] == what and all(line[k] == v for k, v in equal.items())]

    def has_turn(self, model: str, side: Side, depth: int, repetition: int, streams: Iterable[int]) -> bool:
        """Whether the turn was measured, with all these numbers of streams."""
        turns = self.of(TURN, model=model, **asdict(side), depth=depth, repetition=repetition)
        return any(all(str(count) in turn[DECODE] for count in streams) for turn in turns)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is compared: reading ``depth`` tokens, or decoding ``streams`` behind as many."""

    model: str
    phase: str
    depth: int
    streams: int

    @property
    def num_tokens(self) -> int:
        """Tokens of one measurement."""
        return self.depth if self.phase == PREFILL else self.streams

    def clocks(self, turn: Record) -> dict[str, float] | None:
        """Of a line, if it has this cell."""
        found = turn[PREFILL] if self.phase == PREFILL else turn[DECODE].get(str(self.streams))
        return found if (turn["model"], turn["depth"]) == (self.model, self.depth) else None


def cells_of(turns: Sequence[Record]) -> list[Cell]:
    """All that the lines have; the one token that is read for depth 0 is no prefill."""
    cells = {Cell(turn["model"], PREFILL, turn["depth"], 1) for turn in turns if turn["depth"] > 0}
    for turn in turns:
        cells |= {Cell(turn["model"], DECODE, turn["depth"], int(streams)) for streams in turn[DECODE]}
    return sorted(cells, key=lambda cell: (cell.model, cell.phase != PREFILL, cell.streams, cell.depth))


class Speeds:
    """Tokens per second of one cell by side and repetition, on either clock. The last measurement of a turn counts."""

    def __init__(self, cell: Cell, turns: Sequence[Record]) -> None:
        self.cell = cell
        self.rates: dict[Side, dict[int, dict[str, float]]] = {}
        for turn in turns:
            clocks = cell.clocks(turn)
            if clocks is not None:
                side = Side(turn["engine"], turn["dtype"])
                by_clock = {clock: cell.num_tokens / seconds for clock, seconds in clocks.items()}
                self.rates.setdefault(side, {})[turn["repetition"]] = by_clock

    def median(self, side: Side, clock: str = "wall_seconds") -> float:
        return statistics.median(rate[clock] for rate in self.rates[side].values())

    def ratio(self, side: Side, peer: Side, clock: str = "wall_seconds") -> tuple[float, float, float] | None:
        """Median, least and most of the ratios within a repetition; None where they have none in common."""
        both = self.rates.get(side, {}).keys() & self.rates.get(peer, {}).keys()
        if not both:
            return None
        ratios = [self.rates[side][turn][clock] / self.rates[peer][turn][clock] for turn in both]
        return statistics.median(ratios), min(ratios), max(ratios)

    def best(self, sides: Iterable[Side]) -> Side | None:
        """The fastest of those that were measured."""
        return max((side for side in sides if side in self.rates), key=self.median, default=None)

    def rows(self) -> list[Record]:
        """One for each side: medians, their spread, and ratios to the peers in as many bits."""
        rows = []
        for side, rates in self.rates.items():
            row: Record = {**asdict(self.cell), **asdict(side), "repetitions": len(rates)}
            for clock in ("wall_seconds", "cpu_seconds"):
                each = [rate[clock] for rate in rates.values()]
                row[clock.replace("seconds", "tps")] = statistics.median(each)
                row[clock.replace("seconds", "spread")] = [min(each), max(each)]
            for engine in (LLAMA, TRANSFORMERS):
                alike = [peer for peer in self.rates if (peer.engine, peer.num_bits) == (engine, side.num_bits)]
                row[f"to_{engine}"] = self.ratio(side, alike[0]) if alike and side.engine == FANO else None
            rows.append(row)
        return rows
