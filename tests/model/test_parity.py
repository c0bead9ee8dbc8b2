"""Our logits and states against transformers' Jamba: one prefill, then single steps.

transformers is no oracle for a prompt read in several chunks: its full-sequence path starts from a zero state.
"""

import pytest
import torch
from fakes_model import CHECKPOINT_KINDS, Reader, load, make_checkpoint, random_ids, relative_difference
from torch import Tensor

from model.batch import Batch, SequenceChunk
from model.config import Dtype
from model.kernels import Kernels

NUM_PROMPT_TOKENS = 70
NUM_STEPS = 32

# bfloat16 has 8 bits of precision; over four layers of random weights the errors add up to this share of the logits'
# standard deviation, root mean square. transformers in bfloat16 is measured beside it and may not be better.
BFLOAT16_TOLERANCE = 0.05


@torch.no_grad()
def reference_logits(reference: torch.nn.Module, ids: list[int]) -> tuple[Tensor, object]:
    """Logits of all tokens by one prefill and then single steps, and transformers' cache after them."""
    out = reference(torch.tensor([ids[:NUM_PROMPT_TOKENS]]), use_cache=True)
    logits = [out.logits[0]]
    for token in ids[NUM_PROMPT_TOKENS:]:
        out = reference(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0])
    return torch.cat(logits).float(), out.past_key_values


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_prefill_and_single_steps_equal_transformers(kind: str, checkpoints, kernels: Kernels) -> None:
    ids = random_ids(NUM_PROMPT_TOKENS + NUM_STEPS, seed=1)
    expected, cache = reference_logits(checkpoints[kind].reference, ids)
    sequence = Reader(load(checkpoints[kind].directory, kernels=kernels)).open()
    found = sequence.read(ids, splits=range(NUM_PROMPT_TOKENS, len(ids)))
    assert relative_difference(found, expected) <= 1e-4
    assert torch.equal(found.argmax(-1), expected.argmax(-1))

    ssm, conv, kv = sequence.memory()
    mamba = [layer for layer in range(4) if layer % 4 != 1]
    theirs = torch.stack([cache.get_recurrent_state(layer)[0].t() for layer in mamba])
    assert relative_difference(ssm, theirs) <= 1e-4
    # transformers keeps K inputs, of which the next token needs K - 1.
    theirs = torch.stack([cache.get_conv_state(layer)[0, :, 1:].t() for layer in mamba])
    assert relative_difference(conv, theirs) <= 1e-4
    layer = cache.layers[1]
    theirs = torch.stack((layer.keys[0], layer.values[0])).transpose(1, 2)
    assert relative_difference(kv[:, 0].flatten(1, 2)[:, : len(ids)], theirs) <= 1e-4


@pytest.mark.parametrize("kind", ["dense", "mqa", "tied"])
def test_bfloat16_stays_within_its_tolerance(kind: str, tmp_path) -> None:
    reference = make_checkpoint(kind, tmp_path, dtype=torch.bfloat16)
    ids = random_ids(NUM_PROMPT_TOKENS + NUM_STEPS, seed=2)
    theirs, _ = reference_logits(reference, ids)
    exact, _ = reference_logits(reference.float(), ids)
    model = load(tmp_path, Dtype.BFLOAT16)
    found = Reader(model).open().read(ids, splits=range(NUM_PROMPT_TOKENS, len(ids)))
    error = float((found - exact).square().mean().sqrt() / exact.std())
    assert error <= BFLOAT16_TOLERANCE
    assert error <= float((theirs - exact).square().mean().sqrt() / exact.std())


def test_logits_are_computed_for_the_asked_rows_only(dense) -> None:
    ids = random_ids(20, seed=3)
    reader = Reader(dense)
    every = reader.open().read(ids)
    first, second, third = reader.open(), reader.open(), reader.open()
    for sequence in (first, second, third):
        sequence.table.prepare(0, 20)
    chunks = [
        SequenceChunk(ids, 0, sequence.slot, sequence.table.blocks, sequence.policy, num_logits)
        for sequence, num_logits in ((first, 1), (second, 0), (third, 3))
    ]
    found = dense(Batch.pack(chunks), reader.states, reader.blocks)
    assert found.shape == (4, 97)
    assert found.dtype == torch.float32
    assert relative_difference(found[0], every[-1]) <= 1e-4
    assert relative_difference(found[1:], every[-3:]) <= 1e-4
