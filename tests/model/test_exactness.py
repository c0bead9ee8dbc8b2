"""Laws 1 to 3 to the last bit: with native kernels it does not matter how a prompt is cut, who shares a step, which
blocks hold a sequence, or how many threads work on it."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fakes_model import OpenSequence, Reader, load, random_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.batch import Batch
from model.config import Dtype
from model.hybrid import HybridLM
from model.kernels import REFERENCE, choose
from model.policy import AttentionPolicy, PolicyName

POLICIES = st.sampled_from(
    [
        AttentionPolicy(),
        AttentionPolicy(PolicyName.WINDOW, sinks=0, window=64),
        AttentionPolicy(PolicyName.WINDOW, sinks=64, window=64),
    ]
)


@dataclass
class Machine:
    """Models of one checkpoint by dtype and number of threads."""

    models: dict[tuple[str, Dtype, int], HybridLM]

    def model(self, kind: str, dtype: Dtype, num_threads: int) -> HybridLM:
        torch.set_num_threads(num_threads)
        return self.models[kind, dtype, num_threads]


@pytest.fixture(scope="module")
def machine(checkpoints) -> Machine:
    if choose("cpu", 1)[0] is REFERENCE:
        pytest.skip("no native kernels here")
    directories: dict[str, Path] = {kind: checkpoints[kind].directory for kind in ("dense", "experts", "mqa")}
    return Machine(
        {
            (kind, dtype, threads): load(directory, dtype, choose("cpu", threads)[0])
            for kind, directory in directories.items()
            for dtype in Dtype
            for threads in (1, 2)
        }
    )


def read(sequence: OpenSequence, ids: list[int], splits: list[int]) -> Tensor:
    """Logits of all ids, read as a prompt cut at ``splits``."""
    reader, logits = sequence.reader, []
    borders = [0, *sorted({split for split in splits if 0 < split < len(ids)}), len(ids)]
    for start, end in pairwise(borders):
        chunk = sequence.chunk(ids[start:end], is_decode=False)
        logits.append(reader.model(Batch.pack([chunk]), reader.states, reader.blocks))
    return torch.cat(logits)


exactly = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
kinds = st.sampled_from(["dense", "experts", "mqa"])
dtypes = st.sampled_from([*Dtype])
threads = st.sampled_from([1, 2])


@exactly
@given(
    kind=kinds,
    dtype=dtypes,
    num_threads=threads,
    policy=POLICIES,
    num_tokens=st.integers(2, 260),
    splits=st.lists(st.integers(1, 260), max_size=6),
    num_crowding=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_where_a_prompt_is_cut_and_where_it_lies_change_no_bit(
    machine: Machine,
    kind: str,
    dtype: Dtype,
    num_threads: int,
    policy: AttentionPolicy,
    num_tokens: int,
    splits: list[int],
    num_crowding: int,
    seed: int,
) -> None:
    ids = random_ids(num_tokens, seed)
    whole = Reader(machine.model(kind, dtype, 1)).open(policy)
    expected = read(whole, ids, [])
    crowded = Reader(machine.model(kind, dtype, num_threads))
    for index in range(num_crowding):
        read(crowded.open(), random_ids(70, index), [])
    cut = crowded.open(policy)
    found = read(cut, ids, splits)
    assert torch.equal(found, expected)
    # Which hidden blocks are given back, and when, follows the chunks; both hold what the last token sees.
    num_compared = 3 if policy.name is PolicyName.FULL else 2
    for left, right in zip(cut.memory()[:num_compared], whole.memory()[:num_compared], strict=True):
        assert torch.equal(left, right)


drawn = st.tuples(st.integers(1, 120), st.integers(0, 90), POLICIES, st.integers(0, 2**16), st.booleans())


@exactly
@given(
    kind=kinds,
    dtype=dtypes,
    num_threads=threads,
    everyone=st.lists(drawn, min_size=2, max_size=4),
)
def test_who_shares_a_step_changes_no_bit(
    machine: Machine,
    kind: str,
    dtype: Dtype,
    num_threads: int,
    everyone: list[tuple[int, int, AttentionPolicy, int, bool]],
) -> None:
    """Streams and prompt chunks in one ragged step, each beside itself alone."""
    everyone = sorted(everyone, key=lambda each: not each[4])
    model = machine.model(kind, dtype, num_threads)
    reader, chunks, expected, alone, together = Reader(model), [], [], [], []
    for num_tokens, num_before, policy, seed, is_decode in everyone:
        before, ids = random_ids(num_before + 1, seed), random_ids(1 if is_decode else num_tokens, seed + 1)
        single, shared = Reader(model).open(policy), reader.open(policy)
        read(single, before, [])
        read(shared, before, [num_before // 2])
        chunk = single.chunk(ids, is_decode)
        expected.append(model(Batch.pack([chunk]), single.reader.states, single.reader.blocks))
        chunks.append(shared.chunk(ids, is_decode))
        alone.append(single)
        together.append(shared)
    found = model(Batch.pack(chunks), reader.states, reader.blocks)
    assert torch.equal(found, torch.cat(expected))
    for single, shared in zip(alone, together, strict=True):
        for left, right in zip(shared.memory()[:2], single.memory()[:2], strict=True):
            assert torch.equal(left, right)
