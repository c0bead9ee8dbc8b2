"""The Triton kernel for tokens that bring lists, beside its twin and beside full attention; run by `test_triton`."""

import numpy as np
import pytest
import torch
from fakes_parity import (
    BF16_TOLERANCE,
    DEVICE,
    INTERPRETED,
    TOLERANCE,
    assert_close,
    model_of,
    small_tiles,
    triton_kernels,
)

from model.batch import Batch, SequenceChunk
from model.cache.block_pool import BlockTable
from model.kernels import REFERENCE, reference
from model.kernels.listed import ListedTokens
from model.kernels.triton import tables
from model.policy import AttentionPolicy, PolicyName

__all__ = ["small_tiles"]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


class Listed:
    """Tokens with lists of different lengths, of blocks of the pool and fetched ones, other ones for each key head."""

    def __init__(self, heads, groups, width, dtype, counts=(1, 2, 7, 3), seed=0):
        generator = torch.Generator().manual_seed(seed)
        dice = np.random.default_rng(seed)

        def randn(*shape):
            return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

        self.keys, self.values = randn(9, 64, groups, width), randn(9, 64, groups, width)
        self.fetched = randn(6, 2, 64, width)
        num_tokens = len(counts) + 2
        self.queries = randn(num_tokens, heads * width + 5)[:, : heads * width].view(num_tokens, heads, width)
        rows = dice.permutation(num_tokens)[: len(counts)].astype(np.int32)
        entries = dice.integers(-6, 9, (len(counts), groups, max(counts) + 2)).astype(np.int32)
        # What stands behind a list is not looked at.
        for lists, count in zip(entries, counts, strict=True):
            lists[:, count:] = 1 << 30
        offsets = np.array([0, 63, 17, 1], np.int32)[: len(counts)]
        self.tokens = ListedTokens(rows, entries, np.array(counts, np.int32), offsets)

    def run(self, kernel, tokens=None):
        wide = self.queries.shape
        out = torch.full(wide, 9.0, dtype=self.queries.dtype, device=DEVICE)
        kernel(self.queries, self.keys, self.values, self.fetched, self.tokens if tokens is None else tokens, out)
        return out


@DTYPES
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 16), (6, 2, 24), (5, 1, 40)])
def test_lists_give_what_their_twin_gives_and_other_rows_stay(heads, groups, width, dtype):
    problem = Listed(heads, groups, width, dtype)
    found = problem.run(triton_kernels().attend_listed)
    names = "queries", "keys", "values", "fetched"
    for name in names:
        setattr(problem, name, getattr(problem, name).double())
    expected = problem.run(reference.attend_listed)
    assert_close(found, expected, TOLERANCE if dtype == torch.float32 else BF16_TOLERANCE)
    others = [row for row in range(len(found)) if row not in problem.tokens.rows]
    assert (found[others] == 9).all() and len(others) == 2


def test_neighbours_change_no_bit_of_what_a_token_gets(monkeypatch):
    monkeypatch.setattr(tables, "MAX_SPLITS", 2)
    problem = Listed(6, 2, 24, torch.float32)
    together = problem.run(triton_kernels().attend_listed)
    for index, row in enumerate(problem.tokens.rows.tolist()):
        one = slice(index, index + 1)
        parts = (problem.tokens.rows, problem.tokens.entries, problem.tokens.num_entries, problem.tokens.offsets)
        alone = problem.run(triton_kernels().attend_listed, ListedTokens(*(part[one] for part in parts)))
        assert torch.equal(alone[row], together[row])


@DTYPES
def test_a_list_of_every_block_gives_the_bits_of_full_attention(dtype):
    """Wherever the blocks are: law 5 for a token that is drawn."""
    heads, groups, width, position = 6, 2, 24, 64 * 6 + 9
    problem = Listed(heads, groups, width, dtype)
    table = [5, 2, 8, 0, 1, 7, 3]
    step = torch.tensor([0, 1]), [position], [table], [AttentionPolicy()]
    expected = triton_kernels().attend(problem.queries[:1], problem.keys, problem.values, *step)
    entries = np.array([[table, table]], np.int32)
    # Some of them as strips that were fetched, other ones for each head.
    for slot, (group, place) in enumerate([(0, 1), (0, 3), (1, 2), (1, 3), (1, 4)]):
        for part, pool in enumerate((problem.keys, problem.values)):
            problem.fetched[slot, part] = pool[table[place], :, group]
        entries[0, group, place] = -1 - slot
    numbers = [np.array([each], np.int32) for each in (0, 7, position % 64)]
    found = problem.run(triton_kernels().attend_listed, ListedTokens(numbers[0], entries, *numbers[1:]))
    assert torch.equal(found[0], expected[0])


@pytest.mark.skipif(not INTERPRETED, reason="the twins select on a host")
def test_a_model_selects_what_one_on_the_host_selects():
    """A prompt that leaves its window, drawn tokens, and a neighbour that does not select."""
    policy = AttentionPolicy(PolicyName.ARCHIVE, 0, 64, 2)
    logits = []
    for kernels, fetched in ((REFERENCE, 0), (triton_kernels(), 4)):
        model, states, blocks = model_of(kernels, fetched)
        selecting, other = BlockTable(blocks), BlockTable(blocks)
        told = []
        for first, count in ((0, 300), (300, 1), (301, 1)):
            selecting.release_hidden(policy, first)
            selecting.prepare(first, first + count)
            leaving = selecting.leave(policy, first + count)
            chunk = [(7 * place) % 31 for place in range(first, first + count)], first, 0, selecting.blocks, policy
            archived = {"archived": selecting.archive.numbers, "select_from": 290, "leaving": leaving}
            chunks = [SequenceChunk(*chunk, num_logits=1, is_decode=count == 1, **archived)]
            other.prepare(first, first + 3)
            if count == 1:
                chunks.append(SequenceChunk([5, 6, 7], 3 * (first - 300), 1, other.blocks, AttentionPolicy()))
            told.append(model(Batch.pack(chunks, DEVICE), states, blocks))
        logits.append(torch.cat(told))
        if fetched:
            # Of one key head in one layer: two blocks of four for each token, as far as they had left the pool.
            assert 2 <= blocks.fetched.num_fetched <= 4
    assert_close(logits[1], logits[0])
