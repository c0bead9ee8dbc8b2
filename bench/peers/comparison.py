"""The run: which engine does what when, with every figure written down as it comes."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.peers.divergence import divergence, token_ids
from bench.peers.engines import FANO, LLAMA, TRANSFORMERS, Floats, Side
from bench.peers.models import EMBEDDED, convert_missing, embedded_copy, random_checkpoint
from bench.peers.records import DIVERGENCE, MISSING, PEAK, TURN, Records
from bench.peers.worker import EngineMissing, Worker

# Whose logits the others are measured against: the first that is there.
REFERENCES = (Side(TRANSFORMERS, "float32"), Side(FANO, "float32"), Side(LLAMA, "f32"))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. ``depths`` are read, ``streams`` decode behind those of them that are ``decode_depths``."""

    sides: tuple[Side, ...]
    remedies: dict[Side, str]
    parts: tuple[str, ...]
    depths: tuple[int, ...]
    decode_depths: tuple[int, ...]
    peak_depths: tuple[int, ...]
    streams: tuple[int, ...]
    num_steps: int
    repetitions: int
    cores: tuple[int, ...]
    texts: tuple[Path, ...]
    text_tokens: int
    seed: int

    def streams_at(self, depth: int) -> tuple[int, ...]:
        return self.streams if depth in self.decode_depths else ()


class Comparison:
    """Measures what the file does not have yet."""

    def __init__(self, plan: Plan, records: Records, directory: Path, library: Path) -> None:
        self.plan, self.records, self.directory, self.library = plan, records, directory, library
        self.directory.mkdir(parents=True, exist_ok=True)
        for side, remedy in plan.remedies.items():
            self._miss(side, remedy)

    def measure(self, model: str) -> None:
        """Everything about one random checkpoint."""
        checkpoint = random_checkpoint(self.directory, model, self.plan.seed)
        convert_missing(checkpoint, self.plan.sides, self.library)
        if "divergence" in self.plan.parts:
            self.measure_divergence(model, checkpoint)
        if "turns" in self.plan.parts:
            self.measure_turns(model, checkpoint)
        if "peaks" in self.plan.parts:
            self.measure_peaks(model, checkpoint)

    def measure_embedded(self) -> None:
        """The divergence alone, of weights that were trained."""
        checkpoint = embedded_copy(self.directory)
        convert_missing(checkpoint, self.plan.sides, self.library)
        self.measure_divergence(EMBEDDED.name, checkpoint)

    def measure_turns(self, model: str, checkpoint: Path) -> None:
        """Depth by depth, so that a run that is stopped has whole cells; within a repetition the engines take turns."""
        todo = [
            (depth, repetition, side)
            for depth in self.plan.depths
            for repetition in range(self.plan.repetitions)
            for side in rotated(self.plan.sides, repetition)
            if not self.records.has_turn(model, side, depth, repetition, self.plan.streams_at(depth))
        ]
        if not todo:
            return
        with self._opened(checkpoint, [side for side in self.plan.sides if any(side == s for _, _, s in todo)]) as all_:
            for worker in all_.values():
                worker.ask(what="turn", num_tokens=64, streams=[1], num_steps=4, seed=self.plan.seed)
            for depth, repetition, side in (each for each in todo if each[2] in all_):
                streams = self.plan.streams_at(depth)
                seed = self.plan.seed + repetition
                ask = {"num_tokens": max(depth, 1), "streams": streams, "num_steps": self.plan.num_steps, "seed": seed}
                told = all_[side].ask(what="turn", **ask)
                place = {"model": model, **asdict(side), "depth": depth, "repetition": repetition}
                self.records.add({"what": TURN, **place, "load": os.getloadavg()[0], **told})
                say(f"{model} {side}: {depth} tokens, {repetition + 1}/{self.plan.repetitions}")

    def measure_peaks(self, model: str, checkpoint: Path) -> None:
        """Each in a fresh process: a peak never goes down."""
        for depth in self.plan.peak_depths:
            for side in self.plan.sides:
                if not self.records.of(PEAK, model=model, **asdict(side), depth=depth):
                    with self._opened(checkpoint, [side]) as opened:
                        for worker in opened.values():
                            told = worker.ask(what="peak", num_tokens=depth, seed=self.plan.seed)
                            self.records.add({"what": PEAK, "model": model, **asdict(side), "depth": depth, **told})
                            say(f"{model} {side}: peak memory at {depth} tokens")

    def measure_divergence(self, model: str, checkpoint: Path) -> None:
        """Of every side's logits on the texts, from those of the reference."""
        todo = [side for side in self.plan.sides if not self.records.of(DIVERGENCE, model=model, **asdict(side))]
        texts = token_ids(checkpoint, self.plan.texts, self.plan.text_tokens)
        wanted: list[Floats] | None = None
        for reference in (side for side in REFERENCES if todo and side in self.plan.sides and wanted is None):
            wanted, base = self._logits(checkpoint, reference, texts), reference
        for side in todo if wanted else ():
            given = wanted if side == base else self._logits(checkpoint, side, texts)
            if given and wanted:
                told = divergence(wanted, given)
                place = {"model": model, **asdict(side), "reference": str(base)}
                self.records.add({"what": DIVERGENCE, **place, **told})
                say(f"{model} {side}: divergence {told['mean']:.1e}")

    def _logits(self, checkpoint: Path, side: Side, texts: Sequence[Sequence[int]]) -> list[Floats] | None:
        """None where the engine is missing."""
        found: list[Floats] = []
        file = self.directory / "logits.npy"
        with self._opened(checkpoint, [side]) as opened:
            for worker in opened.values():
                for ids in texts:
                    worker.ask(what="logits", ids=ids, file=str(file))
                    found.append(np.load(file))
                    file.unlink()
        return found or None

    @contextmanager
    def _opened(self, checkpoint: Path, sides: Sequence[Side]) -> Iterator[dict[Side, Worker]]:
        """Processes of the engines that start here; the others are written down as missing."""
        opened: dict[Side, Worker] = {}
        try:
            for side in sides:
                library = self.library if side.engine == LLAMA else None
                log = self.directory / f"{side.engine}-{side.dtype}.log"
                log.unlink(missing_ok=True)
                try:
                    opened[side] = Worker(side, checkpoint, self.plan.cores, library, log)
                except EngineMissing as error:
                    self._miss(side, str(error))
            yield opened
        finally:
            for worker in opened.values():
                worker.close()

    def _miss(self, side: Side, remedy: str) -> None:
        self.records.add({"what": MISSING, **asdict(side), "remedy": remedy})
        print(f"{side} is missing: {remedy}", file=sys.stderr, flush=True)


def rotated(sides: Sequence[Side], repetition: int) -> list[Side]:
    """Nobody is always the first, or always behind the same one's heat."""
    first = repetition // 2 % len(sides)
    turned = [*sides[first:], *sides[:first]]
    return turned if repetition % 2 == 0 else turned[::-1]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
