"""What int8 costs in precision, on the embedded checkpoint and this repository's own pages."""

from pathlib import Path

import pytest
import torch

from bench import precision
from bench.dtypes import PRODUCT_ROWS, in_turns, measure_products
from model.config import Dtype
from model.kernels import choose


@pytest.fixture(scope="module", autouse=True)
def native() -> None:
    if choose("cpu", 1)[0].product is None:
        pytest.skip("no native kernels on this machine")


def test_int8_is_no_further_from_float32_than_q8_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["precision", "--short"])
    precision.main()
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "}
    means = {name: float(table[name][0]) for name in ("bfloat16", "int8", "q8_0")}
    assert 0 < means["bfloat16"] < means["int8"] < means["q8_0"] < 0.01


def test_texts_or_the_short_form_must_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for arguments in ([], ["--short", str(tmp_path / "a.txt")]):
        monkeypatch.setattr("sys.argv", ["precision", *arguments])
        with pytest.raises(SystemExit):
            precision.parse_options()


def test_divergence_of_known_distributions() -> None:
    flat, sharp = torch.zeros(2, 4), torch.tensor([[0.0] * 4, [3.0, 0.0, 0.0, 0.0]])
    row = precision.compare([flat], iter([sharp]))
    log_total = float(torch.tensor([3.0, 0.0, 0.0, 0.0]).logsumexp(0))
    expected = log_total - 0.75 - float(torch.tensor(4.0).log())
    assert row["mean"] == pytest.approx(expected / 2) and row["p99"] == pytest.approx(expected)
    assert row["same"] == 1.0


def test_q8_0_rounds_groups_and_leaves_what_are_none() -> None:
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    steps = rows.view(3, 2, 32).abs().amax(-1).repeat_interleave(32, 1) / 127
    assert 0 < float(((precision.round_q8_0(rows) - rows).abs() / steps).max()) < 0.57
    assert torch.equal(precision.round_q8_0(rows[:, :63]), rows[:, :63])


def test_each_dtype_has_its_turn_and_its_rates(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("bench.dtypes.PRODUCT_SHAPES", ((32, 64),))
    monkeypatch.setattr("bench.dtypes.PRODUCT_BYTES", 4 * 32 * 64)
    monkeypatch.setattr("bench.dtypes.PRODUCT_OPERATIONS", 1e6)
    told = measure_products(choose("cpu", 1)[0], num_rounds=1)
    assert [row["rows"] for row in told] == [*PRODUCT_ROWS]
    assert all([*row["gflops"]] == [*map(str, Dtype)] for row in told)
    order: list[Dtype] = []
    in_turns({dtype: lambda dtype=dtype: order.append(dtype) for dtype in Dtype}, num_rounds=2)
    assert order == [*Dtype, *Dtype]
