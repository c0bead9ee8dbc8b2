"""What the kernels on a device are told of a step's sequences, against the policy's own words; without triton."""

from array import array

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.kernels.triton import tables
from model.kernels.triton.tables import (
    LEAST_SPLIT_BLOCKS,
    SPAN_COLUMNS,
    Latest,
    Tables,
    num_visible_blocks,
    paging_pieces,
    paging_tables,
    recurrence_pieces,
    span,
)
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tiles import MAX_SPLITS

policies = st.one_of(
    st.just(AttentionPolicy()),
    st.builds(
        AttentionPolicy, st.just(PolicyName.WINDOW), st.sampled_from([0, 64, 192]), st.sampled_from([64, 128, 448])
    ),
)


def seen_blocks(first: int, num_tokens: int, policy: AttentionPolicy) -> set[int]:
    """Blocks of which some token sees something."""
    return {
        key // BLOCK_TOKENS
        for position in range(first, first + num_tokens)
        for key in range(position + 1)
        if policy.sees(position, key)
    }


@settings(deadline=None, max_examples=60)
@given(first=st.integers(0, 900), num_tokens=st.integers(1, 70), policy=policies, row=st.integers(0, 5))
def test_a_span_names_every_block_that_a_token_sees(
    first: int, num_tokens: int, policy: AttentionPolicy, row: int
) -> None:
    table = [1000 - place for place in range(-(-(first + num_tokens) // BLOCK_TOKENS))]
    seen = seen_blocks(first, num_tokens, policy)
    # What nobody sees was given back.
    table = [block if place in seen else -1 for place, block in enumerate(table)]
    numbers, entries = span(row, first, num_tokens, array("q", table), policy)
    told = dict(zip(SPAN_COLUMNS, numbers, strict=True))
    assert (told["row"], told["first_position"], told["num_entries"]) == (row, first, len(entries))
    places = [v if v < told["sink_blocks"] else v + told["skipped_blocks"] for v in range(len(entries))]
    assert entries.tolist() == [table[place] for place in places]
    assert set(places) == seen
    position = first + num_tokens - 1
    assert num_visible_blocks(position, policy) == len(seen_blocks(position, 1, policy))
    assert LEAST_SPLIT_BLOCKS <= told["split_blocks"]
    assert -(-len(entries) // told["split_blocks"]) <= MAX_SPLITS


def test_a_table_that_is_too_short_or_lacks_a_block_is_an_error() -> None:
    with pytest.raises(AssertionError, match="too short"):
        span(0, 64, 1, [3], AttentionPolicy())
    with pytest.raises(AssertionError, match="given back"):
        span(0, 64, 1, [-1, 3], AttentionPolicy())


@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_tiles_cut_every_sequence_once(lengths: list[int]) -> None:
    bounds = np.cumsum([0, *lengths]).tolist()
    pieces = recurrence_pieces(bounds, list(range(len(lengths))))
    covered = []
    for sequence, row in zip(pieces["tile_sequence"].tolist(), pieces["tile_row"].tolist(), strict=True):
        end = min(row + tables.TILE_TOKENS, bounds[sequence + 1])
        assert bounds[sequence] <= row < end
        covered += range(row, end)
    assert covered == list(range(sum(lengths)))
    counts = np.diff(pieces["first_tile"])
    assert counts.tolist() == np.bincount(pieces["tile_sequence"], minlength=len(lengths)).tolist()


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), tile_tokens=st.sampled_from([1, 4, 16]))
def test_every_query_is_a_decode_or_in_one_tile(lengths: list[int], tile_tokens: int) -> None:
    bounds = np.cumsum([0, *lengths]).tolist()
    many = len(lengths)
    pieces = paging_pieces(bounds, [0] * many, [[0]] * many, [AttentionPolicy()] * many, tile_tokens)
    queries = [(sequence, 0) for sequence in pieces["decodes"].tolist()]
    assert all(lengths[sequence] == 1 for sequence, _ in queries)
    for sequence, token in zip(pieces["tile_sequence"].tolist(), pieces["tile_token"].tolist(), strict=True):
        queries += [(sequence, each) for each in range(token, min(token + tile_tokens, lengths[sequence]))]
    assert sorted(queries) == [(sequence, token) for sequence, length in enumerate(lengths) for token in range(length)]


def test_as_many_splits_are_launched_as_the_longest_decode_needs() -> None:
    firsts = [0, 64 * 9, 64 * 999]
    made = [list(range(first // 64 + 1)) for first in firsts]
    pieces = paging_pieces([0, 1, 2, 3], firsts, made, [AttentionPolicy()] * 3, 1)
    assert pieces["spans"][:, SPAN_COLUMNS.index("split_blocks")].tolist() == [2, 2, 32]
    assert paging_tables(pieces, "cpu").sizes["num_splits"] == 32
    alone = {name: piece[:2] if name in ("spans", "entries", "decodes") else piece for name, piece in pieces.items()}
    assert paging_tables(alone, "cpu").sizes["num_splits"] == 5


def test_pieces_begin_at_multiples_of_sixteen_bytes_and_can_be_overwritten_in_place() -> None:
    pieces = {"one": np.arange(5, dtype=np.int32), "none": np.zeros(0, np.int32), "two": np.ones((2, 3), np.int32)}
    sent = Tables.sent(pieces, {}, "cpu")
    for name, piece in pieces.items():
        assert sent.parts[name].tolist() == piece.tolist()
        assert (sent.parts[name].data_ptr() - sent.whole.data_ptr()) % 16 == 0
    address = sent.parts["two"].data_ptr()
    sent.overwrite(pieces | {"two": np.full((2, 3), 7, np.int32)})
    assert sent.parts["two"].data_ptr() == address and sent.parts["two"].tolist() == [[7, 7, 7], [7, 7, 7]]
    assert sent.parts["one"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(AssertionError, match="do not fit"):
        sent.overwrite(pieces | {"two": np.full((3, 2), 7, np.int32)})


def test_tables_are_made_once_for_the_same_objects_and_never_remembered_for_lists() -> None:
    latest: Latest[int] = Latest()
    made = iter(range(9))
    one, other = torch.zeros(2), torch.zeros(2)
    assert [latest.of((one, tuple([turn])), lambda: next(made)) for turn in range(2)] == [0, 1]
    pair = (one, tuple([3]))
    assert [latest.of(pair, lambda: next(made)) for _ in range(2)] == [2, 2]
    assert latest.of((other, pair[1]), lambda: next(made)) == 3
    changing = (one, [3])
    assert [latest.of(changing, lambda: next(made)) for _ in range(2)] == [4, 5]
    assert latest.of((other, pair[1]), lambda: next(made)) == 3
