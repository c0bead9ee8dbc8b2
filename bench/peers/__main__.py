"""Fano beside llama.cpp and transformers on the same random Jamba weights: prefill, decode, memory, divergence.

    python -m bench.llama                                once: build llama.cpp outside the source tree
    python -m bench.peers --out RESULTS.jsonl            everything (hours: transformers at 32,768 tokens)
    python -m bench.peers --out RESULTS.jsonl --models 28M --depths 0 512 8192        the main figures (20 minutes)
    python -m bench.peers --short                        a tiny model without llama.cpp, seconds, no claim about time

Every engine has a process of its own, bound to the same cores, that waits without spinning. Within a repetition they
take turns, in another order each time: each reads a prompt and then decodes behind it, alone and in several streams.
Figures are medians over the repetitions, ratios those within a repetition. Results are written as they come; the same
command goes on where it was stopped. Prints tables, then one JSON line.
"""

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from bench.llama import LlamaBuild, default_directory
from bench.peers.comparison import Comparison, Plan
from bench.peers.engines import FANO, LLAMA, TRANSFORMERS, Side, all_sides
from bench.peers.models import NAMES, ROOT
from bench.peers.records import DIVERGENCE, MISSING, PEAK, TURN, Records, Speeds, cells_of
from bench.peers.tables import divergence_table, missing_lines, peak_table, speed_table, target_table
from bench.peers.targets import memory_verdicts, stream_verdicts, verdicts
from bench.throughput import describe_machine

TEXTS = (ROOT / "README.md", ROOT / "ARCHITECTURE.md")


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as scratch:
        if options.short:
            options.directory = options.out = None
        directory = options.directory or Path(scratch)
        records = Records(options.out or Path(scratch) / "records.jsonl", describe_run(options))
        print(", ".join(f"{key} {value}" for key, value in records.lines[0].items()), flush=True)
        comparison = Comparison(plan_of(options), records, directory, options.llama)
        for model in options.models:
            comparison.measure(model)
        if not options.short and "divergence" in options.parts:
            comparison.measure_embedded()
        report(records, options.models)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a tiny model in seconds, without llama.cpp")
    parser.add_argument("--out", type=Path, default=None, help="file of results, which a stopped run goes on with")
    parser.add_argument("--directory", type=Path, default=user_cache_path("fano-bench", appauthor=False) / "peers")
    parser.add_argument("--llama", type=Path, default=default_directory(), help="where bench.llama built it")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--engines", nargs="+", default=None, help="sides like 'fano bfloat16'; default all")
    parser.add_argument("--parts", nargs="+", choices=["divergence", "turns", "peaks"], default=None)
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 512, 1024, 8192, 32768], help="tokens read first")
    parser.add_argument("--decode-depths", type=int, nargs="*", default=[0, 8192, 32768], help="where to decode")
    parser.add_argument("--peak-depths", type=int, nargs="*", default=[2048, 32768])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=48, help="decode steps of a turn")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", type=Path, nargs="+", default=list(TEXTS), help="for the divergence, in UTF-8")
    parser.add_argument("--text-tokens", type=int, default=1024, help="of each text")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.parts = options.parts or ["divergence", "turns", "peaks"]
    known = {str(side): side for side in all_sides()}
    quick = [name for name, side in known.items() if side.engine == FANO or name == f"{TRANSFORMERS} float32"]
    wanted = options.engines or (quick if options.short else list(known))
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"--engines {unknown[0]!r}, expected some of {', '.join(map(repr, known))}")
    options.sides = [known[name] for name in wanted]
    if options.short:
        options.models, options.depths, options.decode_depths = ["tiny"], [0, 70], [0, 70]
        options.streams, options.steps, options.repetitions = [1, 2], 4, 2
        options.parts = ["divergence", "turns"]
        options.text_tokens = 64
    elif options.out is None:
        parser.error("--out FILE.jsonl is needed: results are kept as they come (or --short)")
    options.cores = sorted(os.sched_getaffinity(0))[-options.threads :]
    if len(options.cores) < options.threads:
        parser.error(f"--threads {options.threads}, expected at most {len(options.cores)}: the cores there are")
    return options


def describe_run(options: argparse.Namespace) -> dict[str, object]:
    """What figures must have in common to stand in one table."""
    machine = {key: value for key, value in describe_machine(options.threads).items() if key != "load"}
    build = LlamaBuild(options.llama)
    uses_llama = any(side.engine == LLAMA for side in options.sides) and build.has_library
    machine["llama"] = build.version if uses_llama else "none"
    machine |= {"numpy": version("numpy"), "model": sources_digest(ROOT / "model")}
    fixed = {key: getattr(options, key) for key in ("seed", "steps", "cores", "text_tokens")}
    return machine | fixed


def sources_digest(directory: Path) -> str:
    """Which state of Fano's model is measured: eight digits that any change of its sources changes."""
    digest = hashlib.sha256()
    for file in sorted(file for file in directory.rglob("*") if file.suffix in (".py", ".cpp", ".h")):
        digest.update(str(file.relative_to(directory)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(
        sides=present(options.sides, options.llama),
        remedies=absent(options.sides, options.llama),
        parts=tuple(options.parts),
        depths=tuple(sorted(options.depths)),
        decode_depths=tuple(options.decode_depths),
        peak_depths=tuple(sorted(options.peak_depths)),
        streams=tuple(options.streams),
        num_steps=options.steps,
        repetitions=options.repetitions,
        cores=tuple(options.cores),
        texts=tuple(options.texts),
        text_tokens=options.text_tokens,
        seed=options.seed,
    )


def absent(sides: Sequence[Side], library: Path) -> dict[Side, str]:
    """Sides that cannot be measured here, and how to get them."""
    remedies = {}
    for side in sides:
        if side.engine == LLAMA and not LlamaBuild(library).has_library:
            remedies[side] = f"no llama.cpp below {library}; python -m bench.llama --directory {library}"
        if side.engine == TRANSFORMERS and find_spec("transformers") is None:
            remedies[side] = "transformers is not installed; pip install -e '.[cpu,dev]'"
    return remedies


def present(sides: Sequence[Side], library: Path) -> tuple[Side, ...]:
    remedies = absent(sides, library)
    return tuple(side for side in sides if side not in remedies)


def report(records: Records, models: Sequence[str]) -> None:
    """Tables of everything that is in the file."""
    turns, peaks, divergences = records.of(TURN), records.of(PEAK), records.of(DIVERGENCE)
    speeds = [Speeds(cell, turns) for cell in cells_of(turns)]
    rows = [row for each in speeds for row in each.rows()]
    found = []
    for model in dict.fromkeys(each.cell.model for each in speeds):
        known = {Side(row["engine"], row["dtype"]): row["mean"] for row in divergences if row["model"] == model}
        found += verdicts([each for each in speeds if each.cell.model == model], known)
    found += stream_verdicts(speeds) + memory_verdicts(peaks)
    loads = [turn["load"] for turn in turns]
    missing = list({(line["engine"], line["dtype"]): line for line in records.of(MISSING)}.values())
    measured = {(turn["engine"], turn["dtype"]) for turn in turns}
    missing = [line for line in missing if (line["engine"], line["dtype"]) not in measured]
    if loads:
        print(f"\nload over one minute while it ran: {min(loads):.1f} to {max(loads):.1f}")
    for table in (speed_table(rows), divergence_table(divergences), peak_table(peaks), target_table(found)):
        print(f"\n{table}")
    print(f"\n{missing_lines(missing)}")
    result = {"bench": "peers", "run": records.lines[0], "models": list(models), "rows": rows, "targets": found}
    print(json.dumps(result | {"divergences": divergences, "peaks": peaks, "missing": missing}))


if __name__ == "__main__":
    main()
