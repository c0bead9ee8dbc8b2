"""The comparison with other engines: its bookkeeping on recorded lines, and its engines on a tiny model. Never time."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from bench.peers import comparison
from bench.peers.__main__ import absent, main, parse_options
from bench.peers.comparison import Comparison, Plan, rotated
from bench.peers.divergence import divergence
from bench.peers.engines import Engine, FanoEngine, Floats, Side, TransformersEngine, all_sides
from bench.peers.records import DECODE, MISSING, PREFILL, TURN, Cell, OtherRun, Records, Speeds, cells_of
from bench.peers.targets import as_exact, stream_verdicts, verdict, verdicts
from bench.peers.worker import WARM_STEPS, Desk, EngineMissing, Worker
from bench.sides import TINY, make_checkpoint
from model.config import Dtype

FANO, LLAMA = Side("fano", "bfloat16"), Side("llama.cpp", "q8_0")
RUN = {"seed": 0, "torch": "2.13"}


def turn(side: Side, repetition: int, prefill: float, decode: dict[str, float], depth: int = 100) -> dict[str, Any]:
    clocks = {count: {"wall_seconds": each, "cpu_seconds": 2 * each} for count, each in decode.items()}
    place = {"what": TURN, "model": "28M", "engine": side.engine, "dtype": side.dtype, "depth": depth}
    read = {"wall_seconds": prefill, "cpu_seconds": 2 * prefill}
    return place | {"repetition": repetition, "load": 1.0, PREFILL: read, DECODE: clocks}


def turns() -> list[dict[str, Any]]:
    """Fano reads in 1, 4 and 2 seconds, llama.cpp in 4, 8 and 16; decodes alone alike, eight streams in less."""
    found = []
    for repetition, (ours, theirs) in enumerate([(1.0, 4.0), (4.0, 8.0), (2.0, 16.0)]):
        found.append(turn(FANO, repetition, ours, {"1": 0.01, "8": 0.02}))
        found.append(turn(LLAMA, repetition, theirs, {"1": 0.01, "8": 0.08}))
    return found


def test_fano_is_compared_in_every_dtype_it_lists() -> None:
    assert [side.dtype for side in all_sides() if side.engine == "fano"] == [dtype.value for dtype in Dtype]
    assert {side.num_bits for side in all_sides()} <= {8, 16, 32}


def test_rows_are_medians_and_ratios_are_those_within_a_repetition() -> None:
    prefill = Speeds(Cell("28M", PREFILL, 100, 1), turns())
    ours, theirs = prefill.rows()
    assert (ours["wall_tps"], ours["cpu_tps"], ours["wall_spread"]) == (50.0, 25.0, [25.0, 100.0])
    assert theirs["wall_tps"] == 12.5 and ours["repetitions"] == 3
    # 4/1, 8/4, 16/2: of the medians it would be 8/2.
    assert prefill.ratio(FANO, LLAMA) == (4.0, 2.0, 8.0)
    assert prefill.ratio(FANO, Side("llama.cpp", "f32")) is None
    eight = Speeds(Cell("28M", DECODE, 100, 8), turns())
    assert eight.median(FANO) == 400 and eight.ratio(FANO, LLAMA) == (4.0, 4.0, 4.0)
    phases = [(cell.phase, cell.streams) for cell in cells_of(turns())]
    assert phases == [(PREFILL, 1), (DECODE, 1), (DECODE, 8)]
    assert cells_of([turn(FANO, 0, 1.0, {"1": 1.0}, depth=0)]) == [Cell("28M", DECODE, 0, 1)]


def test_a_turn_that_was_measured_again_counts_once() -> None:
    again = Speeds(Cell("28M", PREFILL, 100, 1), [turn(FANO, 0, 1.0, {}), turn(FANO, 0, 2.0, {})])
    assert again.rows()[0]["repetitions"] == 1 and again.median(FANO) == 50.0


def test_a_target_is_met_by_a_side_that_is_as_exact() -> None:
    exact = Side("fano", "float32")
    lines = [*turns(), *(turn(exact, repetition, 5.0, {"1": 0.05}) for repetition in range(3))]
    speeds = [Speeds(cell, lines) for cell in cells_of(lines)]
    known = {FANO: 2e-5, exact: 1e-13, LLAMA: 1e-4}
    prefill, decode = verdicts(speeds, known)
    assert (prefill["side"], prefill["peer"], prefill["target"]) == ("fano bfloat16", "llama.cpp q8_0", 4.0)
    assert prefill["is_hit"] and prefill["wall_seconds"] == (4.0, 2.0, 8.0)
    assert not decode["is_hit"] and decode["wall_seconds"][0] == 1.0
    # The best repetition alone meets no target.
    missed = verdict(Cell("28M", PREFILL, 100, 1), FANO, str(LLAMA), 5.0, {"wall_seconds": (4.0, 2.0, 8.0)})
    assert not missed["is_hit"]
    # Further from float32 than the peer's best, it may not stand for Fano.
    (slower, _) = verdicts(speeds, known | {FANO: 2e-4})
    assert slower["side"] == "fano float32" and not slower["is_hit"]
    assert as_exact([FANO, exact], LLAMA, {}) == [FANO, exact]
    assert as_exact([FANO, exact], Side("llama.cpp", "f32"), {}) == [exact]
    assert as_exact([FANO, exact], LLAMA, {LLAMA: 0.0, FANO: 1e-6, exact: 1e-9}) == [exact]
    (eight,) = stream_verdicts(speeds)
    assert eight["wall_seconds"] == (4.0, 4.0, 4.0) and eight["is_hit"]
    assert (eight["peer"], eight["target"]) == ("one stream", 4.0)


def test_a_run_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    records = Records(file, RUN)
    records.add(turn(FANO, 0, 1.0, {"1": 0.1}))
    with file.open("a", encoding="utf-8") as half:
        half.write('{"what": "turn", "mod')
    again = Records(file, RUN)
    assert [line["what"] for line in again.lines] == ["run", TURN]
    assert again.has_turn("28M", FANO, 100, 0, [1]) and not again.has_turn("28M", FANO, 100, 0, [1, 8])
    assert not again.has_turn("28M", FANO, 100, 1, [1]) and not again.has_turn("28M", LLAMA, 100, 0, [1])
    again.add(turn(FANO, 1, 1.0, {}))
    assert [json.loads(line)["what"] for line in file.read_text().splitlines()] == ["run", TURN, TURN]


def test_figures_of_two_runs_are_not_mixed(tmp_path: Path) -> None:
    Records(tmp_path / "results.jsonl", RUN)
    with pytest.raises(OtherRun, match=r"torch is '2\.14'.*results\.jsonl.*'2\.13'.*--out"):
        Records(tmp_path / "results.jsonl", RUN | {"torch": "2.14"})


class ScriptedWorker:
    """Takes the place of a process; ``fano bfloat16`` does not start."""

    calls: ClassVar[list[str]] = []

    def __init__(self, side: Side, checkpoint: Path, cores: Sequence[int], library: Path | None, log: Path) -> None:
        if side == FANO:
            raise EngineMissing("needs what is not here")
        self.side = side

    def ask(self, **command: Any) -> dict[str, Any]:
        self.calls.append(f"{self.side} {command['num_tokens']}")
        clocks = {"wall_seconds": 1.0, "cpu_seconds": 1.0}
        return {PREFILL: clocks, DECODE: {str(count): clocks for count in command["streams"]}}

    def close(self) -> None:
        self.calls.append(f"{self.side} close")


def plan(sides: Sequence[Side], remedies: dict[Side, str], depths: tuple[int, ...] = (0, 100)) -> Plan:
    return Plan(
        sides=tuple(sides),
        remedies=remedies,
        parts=("turns",),
        depths=depths,
        decode_depths=(0,),
        peak_depths=(),
        streams=(1,),
        num_steps=2,
        repetitions=2,
        cores=(0,),
        texts=(),
        text_tokens=8,
        seed=0,
    )


def test_engines_take_turns_and_missing_ones_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "Worker", ScriptedWorker)
    monkeypatch.setattr(ScriptedWorker, "calls", [])
    one, other = Side("fano", "float32"), Side("transformers", "float32")
    records = Records(tmp_path / "results.jsonl", RUN)
    planned = plan([one, other, FANO], {LLAMA: "build it"})
    Comparison(planned, records, tmp_path, tmp_path).measure_turns("28M", tmp_path)
    missing = {Side(line["engine"], line["dtype"]): line["remedy"] for line in records.of(MISSING)}
    assert missing == {LLAMA: "build it", FANO: "needs what is not here"}
    warm = [f"{one} 64", f"{other} 64"]
    zero = [f"{one} 1", f"{other} 1", f"{other} 1", f"{one} 1"]
    hundred = [call.replace(" 1", " 100") for call in zero]
    assert ScriptedWorker.calls == [*warm, *zero, *hundred, f"{one} close", f"{other} close"]
    # The same again: nothing is left to do but for the one that is missing.
    ScriptedWorker.calls.clear()
    again = Records(tmp_path / "results.jsonl", RUN)
    Comparison(plan([one, other], {}), again, tmp_path, tmp_path).measure_turns("28M", tmp_path)
    assert ScriptedWorker.calls == []


def test_the_order_changes_with_every_repetition() -> None:
    pair = all_sides()[:2]
    assert [rotated(pair, repetition)[0] for repetition in range(4)] == [pair[0], pair[1], pair[1], pair[0]]
    sides = all_sides()[-3:]
    orders = [rotated(sides, repetition) for repetition in range(4)]
    assert orders[0] == sides and len({tuple(map(str, order)) for order in orders}) == 4
    assert all(sorted(map(str, order)) == sorted(map(str, sides)) for order in orders)


def test_llama_that_is_not_built_is_named_with_the_command_that_builds_it(tmp_path: Path) -> None:
    remedies = absent(all_sides(), tmp_path)
    assert {side.engine for side in remedies} == {"llama.cpp"} and len(remedies) == 3
    assert all(f"python -m bench.llama --directory {tmp_path}" in remedy for remedy in remedies.values())


def test_options_name_what_was_expected(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, told in ((["--short", "--engines", "fano int3"], "'fano bfloat16'"), ([], "--out FILE.jsonl is needed")):
        with pytest.raises(SystemExit):
            parse_options(wrong)
        assert told in capsys.readouterr().err


def test_divergence_is_that_of_the_distributions() -> None:
    wanted = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=np.float32))
    given = np.log(np.array([[0.25, 0.625, 0.125], [0.1, 0.1, 0.8]], dtype=np.float32)) + 7
    told = divergence([wanted], [given])
    assert told["mean"] == pytest.approx(0.5 * (0.75 * np.log(2) + 0.25 * np.log(0.4)), rel=1e-5)
    assert told["same_choice"] == 0.5 and told["num_tokens"] == 2
    with pytest.raises(AssertionError, match="expected"):
        divergence([wanted], [given[:1]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_checkpoint(directory, TINY, seed=0)
    # As drawn, every token is followed by itself: what was read must weigh more than the token.
    weights = load_file(directory / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("out_proj.weight", "o_proj.weight")):
            weight.mul_(30)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("kind", [FanoEngine, TransformersEngine])
def test_streams_that_were_spread_go_on_like_the_first(kind: type, checkpoint: Path) -> None:
    engine: Engine = kind(checkpoint, "float32", 1)
    text = [300 + number * number % 97 for number in range(60)]
    expected = engine.all_logits(text).argmax(-1).tolist()[39:]
    assert len(set(expected)) > 5
    for num_streams in (1, 3):
        engine.open(num_streams, len(text))
        found = [[engine.read(text[:40])] * num_streams]
        if num_streams > 1:
            engine.spread(num_streams)
        found += [engine.step([token] * num_streams) for token in text[40:]]
        assert found == [[token] * num_streams for token in expected]


class CountingEngine:
    """Says what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def open(self, num_streams: int, num_tokens: int) -> None:
        self.calls.append(f"open {num_streams} {num_tokens}")

    def read(self, ids: Sequence[int]) -> int:
        self.calls.append(f"read {len(ids)}")
        return 5

    def spread(self, num_streams: int) -> None:
        self.calls.append(f"spread {num_streams}")

    def step(self, tokens: Sequence[int]) -> list[int]:
        self.calls.append(f"step {tokens}")
        return list(tokens)

    def all_logits(self, ids: Sequence[int]) -> Floats:
        return np.zeros((len(ids), 4), dtype=np.float32)


def test_a_turn_reads_then_decodes_alone_then_in_streams() -> None:
    engine = CountingEngine()
    told = Desk(engine).turn(num_tokens=30, streams=[2, 1], num_steps=3, seed=0)
    steps = WARM_STEPS + 3
    expected = [f"open 2 {30 + 2 * steps}", "read 30", *["step [5]"] * steps, "spread 2", *["step [5, 6]"] * steps]
    assert engine.calls == expected
    assert set(told["decode"]) == {"1", "2"} and 0 <= told["prefill"]["wall_seconds"] < 1


def test_an_engine_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match=r"config\.json does not exist"):
        Worker(Side("fano", "float32"), tmp_path, [0], None, tmp_path / "log")


def test_the_short_form_measures_in_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["peers", "--short", "--engines", "fano float32", "llama.cpp bf16", "--llama", "/"]
    )
    main()
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])
    assert {(row["phase"], row["depth"], row["streams"]) for row in told["rows"]} == {
        ("prefill", 70, 1),
        *(("decode", depth, streams) for depth in (0, 70) for streams in (1, 2)),
    }
    assert all(row["repetitions"] == 2 and row["wall_tps"] > 0 for row in told["rows"])
    assert "NOT MEASURED: llama.cpp bf16: no llama.cpp below /; python -m bench.llama --directory /" in out
