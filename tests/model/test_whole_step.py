"""The native decode step against the same model in torch: logits and everything it leaves in the pools."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes_model import TINY_CONFIG, OpenSequence, Reader, kernels_at, random_ids, relative_difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.batch import Batch
from model.cache.plan import _step_bytes
from model.config import Dtype, EngineConfig, ModelConfig
from model.hybrid import HybridLM
from model.kernels import REFERENCE, Kernels
from model.kernels.build import build
from model.kernels.native import InstructionSet
from model.policy import AttentionPolicy, PolicyName
from model.whole_step import WholeStep

LEVELS = [*InstructionSet]
# Largest difference in standard deviations over three steps. Under bfloat16 the oracle is a float32 model of the same
# (rounded) weights: the decoder rounds keys and values, and where the CPU multiplies bfloat16 also what goes into a
# product, as torch does.
# Under int8 the oracle has the same int8 products. Keys and values alone are rounded to bfloat16, as above, but what
# that changes may round an activation to the next whole number.
TOLERANCE = {Dtype.FLOAT32: 5e-5, Dtype.BFLOAT16: 0.02, Dtype.INT8: 0.15}
ROUNDED_TOLERANCE = 0.15
# Odd sizes on purpose: no width is a multiple of a register's.
GEOMETRIES: dict[str, dict[str, object]] = {
    "odd": {"hidden_size": 37, "intermediate_size": 51, "num_attention_heads": 1, "mamba_dt_rank": 3},
    "grouped": {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2},
    "tied": {"hidden_size": 32, "mamba_d_state": 16, "tie_word_embeddings": True, "mamba_conv_bias": False},
    "taps": {"hidden_size": 34, "mamba_d_conv": 3, "vocab_size": 41},
}
# Enough weights that a step of one token is worth three threads.
WIDE = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4}
POLICIES = {"full": AttentionPolicy(), "window": AttentionPolicy(PolicyName.WINDOW, sinks=64, window=64)}


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    path, reason = build()
    if path is None:
        pytest.skip(f"no native kernels on this machine: {reason}")


def make_model(geometry: str, dtype: Dtype) -> HybridLM:
    """Random weights of the order of trained ones, with a slow state that matters."""
    if dtype is Dtype.INT8:
        return quantised(make_model(geometry, Dtype.FLOAT32))
    generator = torch.Generator().manual_seed(5)
    named = WIDE if geometry == "wide" else GEOMETRIES.get(geometry, {})
    model = HybridLM(ModelConfig.from_dict(TINY_CONFIG | named), REFERENCE, dtype)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if name.endswith(".a"):
            parameter.copy_(-torch.exp(values))
        elif name.endswith("dt_bias"):
            parameter.copy_(values - 4)
        elif "norm" in name:
            parameter.copy_(1 + 0.1 * values)
        else:
            parameter.copy_(0.15 * values)
    return model


def quantised(wide: HybridLM) -> HybridLM:
    """The int8 model of the same weights."""
    model = HybridLM(wide.config, REFERENCE, Dtype.INT8)
    for target, source in zip(model.parameters(), wide.parameters(), strict=True):
        if target.dtype == source.dtype:
            target.copy_(source)
    for target, source in zip(model.matrices(), wide.matrices(), strict=True):
        target.fill(source.plain)
    return model


def run_with(kernels: Kernels, model: HybridLM) -> None:
    model.kernels = kernels
    model._whole_step = None


def widened(model: HybridLM) -> HybridLM:
    """The model of the same weights in torch that is float32 in all else."""
    wide = HybridLM(model.config, REFERENCE, Dtype.INT8 if model.dtype is Dtype.INT8 else Dtype.FLOAT32)
    wide.dtype = Dtype.FLOAT32  # that of its pools
    for target, source in zip(wide.parameters(), model.parameters(), strict=True):
        # What is held in bfloat16 may have one more column, which belongs to no input.
        target.copy_(source[..., : target.shape[-1]])
    return wide


class Twins:
    """The same sequences in two sets of pools, read in prompt chunks by torch: side 0 stays float32 and in torch."""

    def __init__(self, model: HybridLM, lengths: list[int], policy: AttentionPolicy) -> None:
        run_with(REFERENCE, model)
        self.model = model
        self.sides = [Reader(widened(model), num_slots=len(lengths) + 1), Reader(model, num_slots=len(lengths) + 1)]
        self.sequences = [[side.open(policy) for _ in lengths] for side in self.sides]
        for sequences in self.sequences:
            for index, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
                sequence.read([token % model.config.vocab_size for token in random_ids(length, index)])
        for wide, narrow in zip(self.memories(0), self.memories(1), strict=True):
            wide.copy_(narrow)

    def step(self, side: int, kernels: Kernels, tokens: list[int]) -> Tensor:
        run_with(kernels, self.sides[side].model)
        parts = [(sequence, [token]) for sequence, token in zip(self.sequences[side], tokens, strict=True)]
        return torch.cat(self.sides[side].step(parts))

    def memories(self, side: int) -> Iterator[Tensor]:
        reader = self.sides[side]
        return iter((reader.states.ssm, reader.states.conv, reader.blocks.keys, reader.blocks.values))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [*Dtype])
@pytest.mark.parametrize("policy", [*POLICIES])
@pytest.mark.parametrize("geometry", [*GEOMETRIES])
def test_logits_and_pools_are_those_of_torch(level: InstructionSet, dtype: Dtype, policy: str, geometry: str) -> None:
    native = kernels_at(level)
    rounds = dtype is Dtype.BFLOAT16 and level is InstructionSet.AVX512BF16
    tolerance = ROUNDED_TOLERANCE if rounds else TOLERANCE[dtype]
    twins = Twins(make_model(geometry, dtype), [1, 63, 200, 64], POLICIES[policy])
    for count in range(3):
        tokens = [(7 * count + index) % 32 for index in range(4)]
        expected, actual = twins.step(0, REFERENCE, tokens), twins.step(1, native, tokens)
        assert twins.model._whole_step is not None
        assert relative_difference(actual, expected) <= tolerance
    for found, wanted in zip(twins.memories(1), twins.memories(0), strict=True):
        unit = 2.0**-8 if found.dtype == torch.bfloat16 else 0.0  # one place of what is held in bfloat16
        torch.testing.assert_close(found.float(), wanted, rtol=unit, atol=tolerance * float(wanted.std()))
        assert torch.equal(found == 0, wanted == 0), "a slot or block that nobody named was written"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [*Dtype])
@given(lengths=st.lists(st.integers(1, 90), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_neighbours_change_no_bit(level: InstructionSet, dtype: Dtype, lengths: list[int], seed: int) -> None:
    native = kernels_at(level)
    model = make_model("grouped", dtype)
    together, alone = Twins(model, lengths, AttentionPolicy()), Twins(model, lengths, AttentionPolicy())
    tokens = [token % 32 for token in random_ids(len(lengths), seed)]
    expected = together.step(1, native, tokens)
    found = [
        alone.sides[1].step([(sequence, [token])])[0]
        for sequence, token in zip(alone.sequences[1], tokens, strict=True)
    ]
    assert torch.equal(torch.cat(found), expected)
    for one, other in zip(alone.memories(1), together.memories(1), strict=True):
        assert torch.equal(one, other)


def test_only_the_rows_asked_for_get_logits() -> None:
    model = make_model("tied", Dtype.FLOAT32)
    native = kernels_at(InstructionSet.PORTABLE)
    twins, others = Twins(model, [3, 5, 2], AttentionPolicy()), Twins(model, [3, 5, 2], AttentionPolicy())
    every = others.step(1, native, [1, 2, 3])
    chunks = [
        replace(sequence.chunk([token]), num_logits=wanted)
        for sequence, token, wanted in zip(twins.sequences[1], [1, 2, 3], [1, 0, 1], strict=True)
    ]
    reader = twins.sides[1]
    some = model(Batch.pack(chunks), reader.states, reader.blocks)
    assert torch.equal(some, every[[0, 2]])


def decoder_inputs(native: Kernels) -> tuple[HybridLM, Reader, OpenSequence]:
    model = make_model("tied", Dtype.FLOAT32)
    run_with(native, model)
    reader = Reader(model)
    sequence = reader.open()
    sequence.read([1, 2, 3])
    return model, reader, sequence


@pytest.mark.parametrize(
    ("field", "value"),
    [("input_ids", [32]), ("input_ids", [-1]), ("state_slots", [4]), ("kv_rows", [32 * 64]), ("logits_rows", [1])],
)
def test_a_step_that_does_not_fit_is_refused_before_anything_is_written(field: str, value: list[int]) -> None:
    model, reader, sequence = decoder_inputs(kernels_at(InstructionSet.PORTABLE))
    batch = replace(Batch.pack([sequence.chunk([4])]), **{field: torch.tensor(value)})
    before = reader.states.ssm.clone(), reader.blocks.keys.clone()
    with pytest.raises(AssertionError, match="does not fit"):
        model(batch, reader.states, reader.blocks)
    assert torch.equal(reader.states.ssm, before[0]) and torch.equal(reader.blocks.keys, before[1])


def test_a_released_block_that_is_seen_is_refused() -> None:
    model, reader, sequence = decoder_inputs(kernels_at(InstructionSet.PORTABLE))
    sequence.read([1] * 70)
    batch = Batch.pack([sequence.chunk([4])])
    batch = replace(batch, block_tables=([-1, *batch.block_tables[0][1:]],))
    with pytest.raises(AssertionError, match="does not fit"):
        model(batch, reader.states, reader.blocks)


@pytest.mark.parametrize("dtype", [*Dtype])
@pytest.mark.parametrize("num_tokens", [5, 500])
@pytest.mark.parametrize("geometry", ["tiny", "odd"])
def test_the_plan_bounds_the_workspace_of_a_step(geometry: str, dtype: Dtype, num_tokens: int) -> None:
    model = make_model(geometry, dtype)
    run_with(kernels_at(InstructionSet.PORTABLE), model)
    reader = Reader(model)
    chunk = reader.open().chunk([1] * num_tokens, is_decode=False)
    reader.model(Batch.pack([chunk]), reader.states, reader.blocks)
    engine = EngineConfig(num_slots=1, max_context_tokens=64, dtype=dtype)
    assert 0 < model.workspace_bytes <= _step_bytes(model.config, engine, num_tokens)


@pytest.mark.parametrize(
    "change", [{"num_experts": 4, "num_experts_per_tok": 2}, {"mamba_proj_bias": True}], ids=["experts", "bias"]
)
def test_layers_without_a_fast_path_are_left_to_torch(change: dict[str, object], tmp_path: Path) -> None:
    extra = {"expert_layer_period": 2, "expert_layer_offset": 1} if "num_experts" in change else {}
    model = HybridLM(ModelConfig.from_dict(TINY_CONFIG | change | extra), kernels_at(InstructionSet.PORTABLE))
    assert WholeStep.of(model) is None


def test_the_reference_has_no_whole_step() -> None:
    assert WholeStep.of(make_model("tied", Dtype.FLOAT32)) is None


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16])
def test_the_crew_changes_no_bit(dtype: Dtype) -> None:
    """Fewer sequences than threads share out key heads, more of them whole sequences."""
    model = make_model("wide", dtype)
    found = []
    for num_threads in (1, 3):
        run_with(kernels_at(max(LEVELS), num_threads), model)
        reader = Reader(model)
        sequences = [reader.open() for _ in range(4)]
        for place, sequence in enumerate(sequences):
            sequence.read([token % model.config.vocab_size for token in random_ids(70 + 60 * place, place)])
        steps = []
        for count in (1, 2, 4):
            model._whole_step = None  # whose first step of a kind is tried with all threads that are allowed
            steps += reader.step([(sequence, [5 + count]) for sequence in sequences[:count]])
        found.append((steps, [reader.states.ssm, reader.states.conv, reader.blocks.keys, reader.blocks.values]))
    (steps, pools), (other_steps, other_pools) = found
    assert all(map(torch.equal, steps, other_steps)) and all(map(torch.equal, pools, other_pools))
