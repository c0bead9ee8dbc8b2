"""The bookkeeping of the benchmark on a device: limits against what is held and multiplied, and its short form."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu import World, random_model
from bench.gpu_limits import (
    WINDOW,
    Case,
    Rates,
    Row,
    cases,
    chunk_flops,
    limit_seconds,
    num_archived,
    predicted,
    scanned_bytes,
    step_bytes,
    values_of,
)
from model.config import Dtype, ModelConfig
from model.kernels import REFERENCE
from model.policy import AttentionPolicy, PolicyName

CONFIG = ModelConfig.from_dict(values_of("tiny"))
NARROW = AttentionPolicy(PolicyName.WINDOW, 64, 128)
SELECTING = AttentionPolicy(PolicyName.ARCHIVE, 64, 64, 2)


@pytest.mark.parametrize("policy", [AttentionPolicy(), NARROW], ids=str)
@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_a_decode_step_moves_the_bytes_that_are_held(policy: AttentionPolicy, dtype: Dtype) -> None:
    case = Case("decode", policy, 3, 700)
    model = random_model(CONFIG, REFERENCE, dtype, "cpu")
    world = World(model, case, "cpu")
    # States are read and written; the world holds only blocks that are seen.
    held = model.nbytes + 2 * world.states.nbytes + world.blocks.nbytes
    assert step_bytes(CONFIG, dtype, case) == held
    assert World.num_bytes(CONFIG, dtype, case) >= world.states.nbytes + world.blocks.nbytes
    assert world.step().isfinite().all()


def test_a_step_that_selects_moves_what_is_held_and_fetched_and_scans_every_summary() -> None:
    case = Case("decode", SELECTING, 3, 700)
    world = World(random_model(CONFIG, REFERENCE, Dtype.FLOAT32, "cpu"), case, "cpu")
    # Of eleven blocks one is the sinks, and two are seen of the window; the others are in the archive.
    archive = world.fetched.archive
    assert num_archived(case) == archive.num_blocks == archive.num_live == 11 - 1 - 2
    fetched = world.fetched.nbytes
    assert fetched == 3 * 2 * 64 * CONFIG.kv_bytes_per_token(Dtype.FLOAT32)
    held = world.model.nbytes + 2 * world.states.nbytes + world.blocks.nbytes + fetched
    assert step_bytes(CONFIG, Dtype.FLOAT32, case) == held
    assert scanned_bytes(CONFIG, Dtype.FLOAT32, case) == 3 * archive.summaries.nbytes
    rates = Rates(1e9, 1e12, 1e6)
    assert limit_seconds(CONFIG, Dtype.FLOAT32, case, rates) == held / 1e9 + 3 * archive.summaries.nbytes / 1e6
    for _ in range(2):
        assert world.step().isfinite().all()
    # Each layer's key heads select two blocks a sequence.
    strips = 3 * 2 * CONFIG.num_kv_heads * CONFIG.num_attention_layers
    assert 0 < world.fetched.num_fetched <= world.fetched.num_fetched + world.fetched.num_found <= 2 * strips


def test_a_chunk_takes_the_products_that_torch_counts() -> None:
    num_tokens = 32
    case = Case("prefill", AttentionPolicy(), 1, num_tokens, num_tokens)
    world = World(random_model(CONFIG, REFERENCE, Dtype.FLOAT32, "cpu"), case, "cpu")
    with FlopCounterMode(display=False) as counter:
        world.step()
    # Beyond ours: the logits of the rows up to 16, what the reference masks afterwards, and the scan's own product.
    rows = 15 * 2 * CONFIG.vocab_size * CONFIG.hidden_size
    masked = 4 * CONFIG.num_attention_layers * CONFIG.query_size * (num_tokens * (num_tokens - 1) // 2)
    scan = 2 * CONFIG.num_mamba_layers * num_tokens * CONFIG.state_size * CONFIG.inner_size
    assert counter.get_total_flops() == chunk_flops(CONFIG, case) + rows + masked + scan


@pytest.mark.parametrize("length", [60, 200, 700])
def test_attention_is_counted_for_the_keys_that_a_token_sees(length: int) -> None:
    seen = sum(NARROW.sees(position, key) for position in range(length - 40, length) for key in range(length))
    narrow, full = (
        chunk_flops(CONFIG, Case("prefill", policy, 1, length, 40)) for policy in (NARROW, AttentionPolicy())
    )
    everything = sum(position + 1 for position in range(length - 40, length))
    assert full - narrow == 4 * CONFIG.num_attention_layers * CONFIG.query_size * (everything - seen)


def test_under_a_window_a_chunk_costs_the_same_at_every_length() -> None:
    flops = [chunk_flops(CONFIG, Case("prefill", WINDOW, 1, length, 128)) for length in (1 << 13, 1 << 20)]
    assert flops[0] == flops[1] < chunk_flops(CONFIG, Case("prefill", AttentionPolicy(), 1, 1 << 20, 128))


def test_predictions_are_the_targets_over_the_limits() -> None:
    rates = Rates(1e9, 1e12)
    decode, prefill = Case("decode", WINDOW, 2, 700), Case("prefill", WINDOW, 2, 700, 100)
    assert limit_seconds(CONFIG, Dtype.FLOAT32, decode, rates) == step_bytes(CONFIG, Dtype.FLOAT32, decode) / 1e9
    assert limit_seconds(CONFIG, Dtype.FLOAT32, prefill, rates) == chunk_flops(CONFIG, prefill) / 1e12
    assert (predicted(decode, 0.4), predicted(prefill, 0.4)) == (0.5, 0.8)
    told = [Row("fano", case.phase, "full", 1, 9, 0.4, 0.5, 0.5).cell for case in (decode, prefill)]
    assert "1.25 x floor" in told[0] and "80% of rate" in told[1]
    assert Row("fano", "decode", "full", 1, 9, 0.4, 0.5, reason="too big").cell == "not measured: too big"


def test_cases_cover_lengths_and_batches_and_share_out_a_chunk() -> None:
    made = cases([100, 5000], [1, 8], 512)
    assert {(case.length, case.batch) for case in made} == {(100, 1), (100, 8), (5000, 1), (5000, 8)}
    assert {case.num_tokens for case in made if case.phase == "prefill"} == {100, 512, 64}
    assert all(case.first_position + case.num_tokens == case.length for case in made)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_it_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "needs a CUDA device" in done.stdout


def test_the_short_form_predicts_every_number_that_it_takes() -> None:
    command = [sys.executable, "-m", "bench.gpu", "--short", "--lengths", "100", "300", "--batches", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    # Both phases under two policies at two lengths, one that selects, and those of the other side.
    assert len(result["rows"]) == 8 + 1 + 2
    assert [row["length"] for row in result["rows"] if "archive" in row["policy"]] == [300]
    assert all(row["predicted_seconds"] > 0 and row["seconds"] > 0 for row in result["rows"])
    assert {row["side"] for row in result["rows"]} == {"fano", "transformers"}
    assert result["differences"]["float32"] < 1e-3
