"""The targets, and whether the figures meet them: each engine at its best, none ahead by being less exact."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.peers.engines import FANO, LLAMA, TRANSFORMERS, Side
from bench.peers.records import DECODE, PREFILL, Cell, Record, Speeds

# Divergences of float32 from float32 are rounding, whichever is less; means over some thousand tokens are good to this.
NO_DIVERGENCE = 1e-7
SAME_DIVERGENCE = 1.1
LARGE_PROMPT = 32768


@dataclass(frozen=True, slots=True)
class Target:
    """At least ``least`` times the peer's best in cells of a phase, streams and depth."""

    peer: str
    phase: str
    least: float
    lowest_depth: int = 0
    highest_depth: int = 1 << 62

    def is_for(self, cell: Cell) -> bool:
        is_deep = self.lowest_depth <= cell.depth <= self.highest_depth
        return cell.phase == self.phase and cell.streams == 1 and is_deep


TARGETS = (
    Target(LLAMA, PREFILL, 4.0, highest_depth=1024),
    Target(LLAMA, PREFILL, 3.0, lowest_depth=1025),
    Target(LLAMA, DECODE, 1.2),
    Target(TRANSFORMERS, PREFILL, 8.0),
    Target(TRANSFORMERS, DECODE, 9.0),
)
STREAMS, STREAMS_LEAST = 8, 4.0
MEMORY_LEAST = 10.0


def as_exact(sides: Sequence[Side], peer: Side, divergences: Mapping[Side, float]) -> list[Side]:
    """Those of ``sides`` that are as near to float32 as ``peer``; by their bits where nothing was measured."""
    if peer not in divergences:
        return [side for side in sides if side.num_bits >= peer.num_bits]
    most = max(NO_DIVERGENCE, SAME_DIVERGENCE * divergences[peer])
    return [side for side in sides if divergences.get(side, float("inf")) <= most]


def verdicts(speeds: Sequence[Speeds], divergences: Mapping[Side, float]) -> list[Record]:
    """For each cell a target is for: which side met which, and the ratio within repetitions on both clocks."""
    found = []
    for each in speeds:
        for target in TARGETS:
            peer = each.best([side for side in each.rates if side.engine == target.peer])
            ours = [side for side in each.rates if side.engine == FANO]
            side = each.best(as_exact(ours, peer, divergences)) if peer else None
            if target.is_for(each.cell) and peer and side:
                ratios = {clock: each.ratio(side, peer, clock) for clock in ("wall_seconds", "cpu_seconds")}
                found.append(verdict(each.cell, side, str(peer), target.least, ratios))
    return found


def stream_verdicts(speeds: Sequence[Speeds]) -> list[Record]:
    """Eight streams together over one, for each dtype of Fano and depth."""
    by_cell = {each.cell: each for each in speeds}
    found = []
    for each in speeds:
        single = by_cell.get(Cell(each.cell.model, DECODE, each.cell.depth, 1))
        if each.cell.streams == STREAMS and single:
            for side in (side for side in each.rates if side.engine == FANO and side in single.rates):
                both = Speeds(each.cell, [])
                alone = Side("one stream", side.dtype)
                both.rates = {side: each.rates[side], alone: single.rates[side]}
                ratios = {clock: both.ratio(side, alone, clock) for clock in ("wall_seconds", "cpu_seconds")}
                found.append(verdict(each.cell, side, "one stream", STREAMS_LEAST, ratios))
    return found


def memory_verdicts(peaks: Sequence[Record]) -> list[Record]:
    """Peak resident set of transformers over Fano's, in the same dtype."""
    found = []
    for peak in (peak for peak in peaks if peak["engine"] == FANO and peak["depth"] >= LARGE_PROMPT):
        place = {"engine": TRANSFORMERS, "dtype": peak["dtype"], "model": peak["model"], "depth": peak["depth"]}
        for peer in (other for other in peaks if all(other[key] == value for key, value in place.items())):
            ratio = peer["peak_bytes"] / peak["peak_bytes"]
            cell = Cell(peak["model"], "peak memory", peak["depth"], 1)
            ratios = {"wall_seconds": (ratio, ratio, ratio), "cpu_seconds": None}
            found.append(verdict(cell, Side(FANO, peak["dtype"]), str(TRANSFORMERS), MEMORY_LEAST, ratios))
    return found


def verdict(
    cell: Cell, side: Side, peer: str, least: float, ratios: Mapping[str, tuple[float, float, float] | None]
) -> Record:
    wall = ratios["wall_seconds"]
    is_hit = wall is not None and wall[0] >= least
    return {**asdict(cell), "side": str(side), "peer": peer, "target": least, "is_hit": is_hit, **ratios}
