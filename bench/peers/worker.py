"""The process of one engine, and its handle: commands go in as JSON lines, measurements come out.

An engine that waits for its turn takes no core: its process blocks on its standard input. Clocks are read inside, so
that neither JSON nor the pipe is measured. ``Worker`` is the side that asks.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.engines import Engine, Side, open_engine

Clocks = dict[str, float]
WARM_STEPS = 2
# Ids that every vocabulary here has, special ones left out.
LOWEST_ID, HIGHEST_ID = 300, 511


class EngineMissing(Exception):
    """An engine does not start here; the message says why and what would mend it."""


class Worker:
    """An engine in a process bound to ``cores``, which waits without spinning."""

    def __init__(self, side: Side, checkpoint: Path, cores: Sequence[int], library: Path | None, log: Path) -> None:
        """Raises ``EngineMissing`` with the end of its log."""
        self.side, self.log = side, log
        command = [sys.executable, "-m", "bench.peers.worker", side.engine, side.dtype, str(checkpoint)]
        command += [",".join(map(str, cores)), str(library or "")]
        waiting = {"OMP_NUM_THREADS": str(len(cores)), "OMP_WAIT_POLICY": "passive"}
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ | waiting,
                cwd=Path(__file__).parents[2],
            )
        try:
            self._hear()
        except EngineMissing:
            self.close()
            raise

    def ask(self, **command: object) -> dict[str, Any]:
        """Have a method of ``Desk`` called and return what it says."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._hear()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            told = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise EngineMissing(told[-1] if told else f"the process of {self.side} ended without a word")
        reply: dict[str, Any] = json.loads(line)
        return reply


class Desk:
    """What a process can be asked. Every method returns what goes back as JSON."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.loaded_bytes = peak_bytes()

    def turn(self, num_tokens: int, streams: Sequence[int], num_steps: int, seed: int) -> dict[str, Any]:
        """A prompt of ``num_tokens``, then ``num_steps`` decode steps of each number of streams.

        Seconds of the prompt, and the median seconds of a step.
        """
        most = max(streams, default=1)
        room = num_tokens + len(streams) * (WARM_STEPS + num_steps)
        self.engine.open(most, room)
        token, prefill = timed(partial(self.engine.read, prompt_ids(num_tokens, seed)))
        decode = {}
        for num_streams in sorted(streams):
            if num_streams > 1:
                self.engine.spread(num_streams)
            # Different ones, so that the streams part.
            tokens = [(token + stream) % HIGHEST_ID for stream in range(num_streams)]
            for _ in range(WARM_STEPS):
                tokens = self.engine.step(tokens)
            steps = []
            for _ in range(num_steps):
                tokens, spent = timed(partial(self.engine.step, tokens))
                steps.append(spent)
            decode[str(num_streams)] = {clock: statistics.median(step[clock] for step in steps) for clock in steps[0]}
            token = tokens[0]
        return {"prefill": prefill, "decode": decode}

    def logits(self, ids: Sequence[int], file: str) -> dict[str, Any]:
        """Write the logits after every token to ``file``."""
        np.save(file, self.engine.all_logits(ids))
        return {}

    def peak(self, num_tokens: int, seed: int) -> dict[str, Any]:
        """Highest resident set, after loading and after a prompt and some steps; for a fresh process."""
        self.engine.open(1, num_tokens + 4)
        token = self.engine.read(prompt_ids(num_tokens, seed))
        for _ in range(4):
            (token,) = self.engine.step([token])
        return {"loaded_bytes": self.loaded_bytes, "peak_bytes": peak_bytes()}


def timed(work: Callable[[], Any]) -> tuple[Any, Clocks]:
    """What it returns, and the seconds it took by both clocks."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def prompt_ids(num_tokens: int, seed: int) -> list[int]:
    dice = random.Random(f"{seed}/{num_tokens}")
    return [dice.randint(LOWEST_ID, HIGHEST_ID) for _ in range(num_tokens)]


def peak_bytes() -> int:
    # Not getrusage: its ru_maxrss starts from the parent's in a process that was forked.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main(arguments: Sequence[str]) -> None:
    engine, dtype, checkpoint, cores, library = arguments
    numbers = [int(core) for core in cores.split(",")]
    os.sched_setaffinity(0, numbers)
    answers = os.fdopen(os.dup(1), "w")
    # What a library prints belongs into the log.
    os.dup2(2, 1)
    place = Path(library) if library else None
    desk = Desk(open_engine(Side(engine, dtype), Path(checkpoint), len(numbers), place))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command: Mapping[str, Any] = json.loads(line)
        method = getattr(desk, command["what"])
        reply = method(**{key: value for key, value in command.items() if key != "what"})
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
