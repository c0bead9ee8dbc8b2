import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes_model import TINY_CONFIG
from typer.testing import CliRunner

from model.cache.block_pool import BlockPool
from model.cache.state_pool import StatePool
from model.config import Dtype, EngineConfig, ModelConfig
from model.hybrid import HybridLM
from model.kernels import REFERENCE
from server.commands.cli import app
from server.commands.plan import parse_size


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY_CONFIG))
    return path


@pytest.mark.parametrize(("policy", "dtype"), [("full", "float32"), ("window", "bfloat16")])
def test_the_bill_is_what_is_allocated(config_file: Path, policy: str, dtype: str) -> None:
    options = ("--context", "4K", "--sessions", "3", "--policy", policy, "--dtype", dtype)
    bill = json.loads(run(str(config_file), *options, "--json"))
    config = ModelConfig.from_dict(TINY_CONFIG)
    model = HybridLM(config, REFERENCE, Dtype(dtype), device="meta")
    num_states = bill["slots"] + bill["checkpoint_slots"]
    states, blocks = StatePool(config, num_states, "meta"), BlockPool(config, bill["blocks"], Dtype(dtype), "meta")
    device = bill["device_bytes"]
    assert (device["weights"], device["kv"]) == (model.nbytes, blocks.nbytes)
    assert (device["ssm_state"], device["conv_state"]) == (states.ssm_bytes, states.conv_bytes)
    assert device["total"] == sum(size for pool, size in device.items() if pool != "total")
    assert bill["slots"] == 3 and bill["checkpoint_slots"] == EngineConfig().num_checkpoint_slots
    assert bill["session_bytes"]["total"] * 3 == states.nbytes // num_states * 3 + blocks.nbytes
    assert (bill["sessions"], bill["context_tokens"]) == (3, 4000)


def test_a_session_under_window_costs_the_same_at_any_length() -> None:
    short, long = (json.loads(run("--context", size, "--json")) for size in ("16K", "1M"))
    assert short["session_bytes"]["total"] == long["session_bytes"]["total"]
    assert long["session_bytes"]["total_under_full"] > 100 * long["session_bytes"]["total"]


def test_the_bill_is_for_people_too(config_file: Path) -> None:
    told = run("--context", "1M", "--sessions", "64")
    assert "fano-reader" in told and "64 sessions of 1,000,000 tokens" in told
    for pool in ("weights", "ssm_state", "conv_state", "kv", "workspace", "total"):
        assert pool in told
    assert "under policy full it would be" in told and "16 are slots for checkpoints" in told
    assert "grows with the length" in run(str(config_file.parent))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("/no/such/place",), "/no/such/place/config.json does not exist"),
        (("--context", "many"), "context is 'many', which is not a size"),
        (("--context", "0"), "context is '0', which is not a size"),
        (("--policy", "window", "--window", "100"), "multiple of 64"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(arguments: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 1
    assert told in result.stderr and len(result.stderr.splitlines()) == 1


def test_sizes_are_decimal() -> None:
    assert [parse_size(text) for text in ("4096", "32K", "1.5m", " 1M ")] == [4096, 32_000, 1_500_000, 1_000_000]


def test_nothing_heavy_is_loaded_for_it() -> None:
    lines = (
        "import sys",
        "from server.commands.cli import app",
        "try: app(['plan'])",
        "except SystemExit: pass",
        "assert 'torch' not in sys.modules",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True)
