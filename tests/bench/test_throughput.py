"""The comparison with transformers in its short form: correctness, never time."""

from pathlib import Path

import pytest

from bench.sides import DTYPES, TINY, make_checkpoint, open_side
from bench.throughput import ENGINES, Speed, compare_logits, table_of


def test_both_engines_give_the_same_logits(tmp_path: Path) -> None:
    assert make_checkpoint(tmp_path, TINY, seed=0) == 217_388
    sides = [open_side(engine, dtype, tmp_path, num_threads=1) for dtype in DTYPES for engine in ENGINES]
    differences = compare_logits(sides, num_prompt=70, num_steps=8)
    assert [*differences] == [f"{engine} {dtype}" for dtype in DTYPES for engine in ENGINES]
    assert differences["transformers float32"] == 0 < differences["fano float32"] < 1e-4
    assert 0 < differences["fano bfloat16"] < 0.15


def test_logits_that_differ_are_an_error(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("other", 1)):
        make_checkpoint(tmp_path / name, TINY, seed)
    sides = [
        open_side("transformers", "float32", tmp_path / "one", 1),
        open_side("fano", "float32", tmp_path / "other", 1),
    ]
    with pytest.raises(AssertionError, match="fano float32: logits differ"):
        compare_logits(sides, num_prompt=20, num_steps=2)


def test_rows_are_medians_over_the_rounds() -> None:
    turns = [Speed("fano float32", 100, cpu, 2 * cpu, cpu / 10, cpu / 5) for cpu in (1.0, 4.0, 2.0)]
    (row,) = table_of(turns)
    assert row == {
        "side": "fano float32",
        "num_tokens": 100,
        "prefill_cpu_tps": 50.0,
        "decode_cpu_tps": 5.0,
        "prefill_wall_tps": 25.0,
        "decode_wall_tps": 2.5,
    }
