"""The attention archive: memory, then a file; blocks that are there as long as somebody refers to them."""

import os
from array import array
from pathlib import Path

import pytest
import torch
from fakes_archive import BLOCK, CONFIG, SUMMARY, Bench
from fakes_engine import write_tokenizer
from fakes_model import TINY_CONFIG, kernels_at, load
from fakes_runner import request
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cache.archive_table import ArchiveTable
from model.cache.kv_archive import STEPS_BETWEEN_RESTS, KvArchive
from model.config import Dtype, ModelConfig
from model.errors import ArchiveFull, InvalidRequest, NeverFits
from model.hybrid import HybridLM
from model.kernels import REFERENCE
from model.kernels.native import InstructionSet
from model.kernels.selection import ArchivedLayer, choose, summary
from model.policy import AttentionPolicy, PolicyName
from model.tiles import summary_shape
from model.tokenizer import Tokenizer

Table = tuple[ArchiveTable, list[int]]


def content(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (CONFIG.num_attention_layers, 64, CONFIG.num_kv_heads, CONFIG.head_width)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def present_bytes(tensor: torch.Tensor) -> int:
    """Memory behind the whole pages of ``tensor``, as the kernel tells page by page (proc_pid_pagemap(5))."""
    page = os.sysconf("SC_PAGE_SIZE")
    first, end = -(-tensor.data_ptr() // page), (tensor.data_ptr() + tensor.nbytes) // page
    with Path("/proc/self/pagemap").open("rb") as pages:
        pages.seek(8 * first)
        entries = torch.frombuffer(bytearray(pages.read(8 * (end - first))), dtype=torch.int64)
    return int((entries < 0).sum()) * page  # bit 63: present


def disk_bytes(archive: KvArchive) -> int:
    return os.fstat(archive._descriptor).st_blocks * 512


@settings(max_examples=30, deadline=None)
@given(actions=st.lists(st.tuples(st.sampled_from("take fork drop cache".split()), st.integers(0, 99)), max_size=60))
def test_blocks_are_counted_shared_and_kept_bit_for_bit(actions: list[tuple[str, int]]) -> None:
    """Law 4, with some blocks in memory and some in the file."""
    archive = KvArchive(CONFIG, Dtype.FLOAT32, 3 * (BLOCK + SUMMARY) + 4 * SUMMARY, 4 * BLOCK)
    assert (archive.num_in_memory, archive.num_blocks) == (3, 7)
    tables: list[Table] = []
    cached: list[Table] = []
    for number, (action, index) in enumerate(actions):
        if action == "take" or not tables:
            table, seeds = ArchiveTable(archive), [number] * (1 + index % 3)
            if len(seeds) > archive.num_free:
                with pytest.raises(ArchiveFull, match=r"kv_archive.*FANO_ARCHIVE_BYTES"):
                    archive.allocate(len(seeds))
                continue
            table.extend(1, [archive.put(*content(seed)) for seed in seeds])
            tables.append((table, seeds))
        elif action == "fork":
            table, seeds = tables[index % len(tables)]
            tables.append((table.fork(), seeds))
        elif action == "cache":
            table, seeds = tables[index % len(tables)]
            cached.append((table.fork(is_cached=True), seeds))
        else:
            table, _ = tables.pop(index % len(tables))
            table.free()
            if index % 2 and cached:
                cached.pop()
        table = None
        assert_kept(archive, tables, cached)


def assert_kept(archive: KvArchive, tables: list[Table], cached: list[Table]) -> None:
    kept = {block.number for table, _ in (*tables, *cached) for block in table.blocks}
    used = {block.number for table, _ in tables for block in table.blocks}
    archive.check([table.numbers for table, _ in tables], [table.numbers for table, _ in cached])
    assert (archive.num_used, archive.num_used + archive.num_cached) == (len(used), len(kept))
    assert sum(archive.memory_bytes.values()) + archive.disk_bytes == len(kept) * (BLOCK + SUMMARY)
    for table, seeds in (*tables, *cached):
        for block, seed in zip(table.blocks, seeds, strict=True):
            keys, values = content(seed)
            assert torch.equal(block.keys, keys) and torch.equal(block.values, values)
            assert torch.equal(archive.summaries[:, :, block.number], summary(keys))


@given(
    memory=st.integers(0, 40 * (BLOCK + SUMMARY)),
    disk=st.integers(0, 400 * BLOCK),
    dtype=st.sampled_from([Dtype.FLOAT32, Dtype.BFLOAT16]),
)
def test_the_budget_of_memory_has_the_summaries_of_the_disk_in_it(memory: int, disk: int, dtype: Dtype) -> None:
    block, summed = CONFIG.archive_bytes_per_block(dtype)
    near, far = CONFIG.num_archive_blocks(dtype, memory, disk)
    taken = near * (block + summed) + far * summed
    assert taken <= memory and far * block <= disk
    # As many as there can be: neither place has room for one more.
    assert memory - taken < block + summed
    assert disk - far * block < block or memory - far * summed < summed


def test_memory_and_disk_are_given_back(tmp_path: Path) -> None:
    config = ModelConfig.from_dict(TINY_CONFIG | {"hidden_size": 256, "num_attention_heads": 2})
    block, summed = config.archive_bytes_per_block(Dtype.FLOAT32)
    budget = 60 * (block + summed) + 300 * summed
    archive = KvArchive(config, Dtype.FLOAT32, budget, 300 * block, tmp_path)
    assert (archive.num_in_memory, archive.num_blocks) == (60, 360)
    assert not list(tmp_path.iterdir()), "the file has no name, so that it is gone with the process"
    near, far = archive.keys_values
    assert present_bytes(near) == present_bytes(archive.summaries) == disk_bytes(archive) == 0
    blocks = archive.allocate(archive.num_blocks)
    for each in blocks:
        each.keys.fill_(1)
        each.values.fill_(1)
    archive.summaries.fill_(1)
    assert archive.disk_bytes == 300 * block and archive.num_free == 0
    assert sum(archive.memory_bytes.values()) == budget
    assert present_bytes(near) == archive.memory_bytes["kv_archive"]
    page = os.sysconf("SC_PAGE_SIZE")
    assert abs(present_bytes(archive.summaries) - archive.memory_bytes["kv_summaries"]) < page
    assert 300 * block <= disk_bytes(archive) < 301 * block
    # What was read of the file is the system's, and leaves the process when it rests.
    assert present_bytes(far) > 0
    for _ in range(STEPS_BETWEEN_RESTS):
        archive.rest()
    assert present_bytes(far) == 0
    del each
    rows = archive.summaries.shape[0] * archive.summaries.shape[1]
    for kept in (slice(100, 260), slice(30, 90), slice(0)):
        blocks = blocks[kept]
        live = archive.num_live
        assert live == len(blocks) and archive.disk_bytes == block * live <= disk_bytes(archive) < block * (live + 1)
        assert present_bytes(near) == 0
        # Where a run of free ones begins and where it ends, a page has some of its neighbours too.
        assert -page < present_bytes(archive.summaries) - archive.memory_bytes["kv_summaries"] < 2 * rows * page
        assert all(bool((archive.summaries[:, :, each.number] == 1).all()) for each in blocks)


def test_the_file_goes_with_the_archive(tmp_path: Path) -> None:
    archive = KvArchive(CONFIG, Dtype.FLOAT32, 5 * SUMMARY, 5 * BLOCK, tmp_path)
    (block,) = archive.allocate(1)
    block.keys.fill_(1)
    held = Path(f"/proc/self/fd/{archive._descriptor}")
    name = held.readlink()
    assert name.is_relative_to(tmp_path)
    del archive
    assert held.readlink() == name, "the block holds it"
    del block
    assert not held.is_symlink() or held.readlink() != name


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = KvArchive(CONFIG, Dtype.FLOAT32, 2 * (BLOCK + SUMMARY) + 5 * SUMMARY, 5 * BLOCK, tmp_path)
    near = archive.allocate(2)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(ArchiveFull):
            archive.allocate(1)
    assert archive.num_free == 5 and len(near) == 2
    archive.allocate(1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def model(checkpoints) -> HybridLM:
    return load(checkpoints["dense"].directory)


def test_the_bill_of_a_request_counts_its_archive(model: HybridLM, tokenizer: Tokenizer) -> None:
    bench = Bench(model, tokenizer, 40)
    usage = bench.ask("a", bench.text(1000), 3, num_choices=2).usage
    block, summed = model.config.archive_bytes_per_block(Dtype.FLOAT32)
    # All but the block of the sinks and those of the window, which begins at 1002 - 64 tokens; both choices share them.
    assert (usage.kv_archive_bytes, usage.kv_summary_bytes) == (13 * block, 13 * summed)
    stats = bench.engine.stats()
    assert stats.archive_blocks.total == 40 and stats.archive_blocks.used == 0
    assert dict(stats.archive_bytes) == {"kv_archive": 13 * block, "kv_summaries": 13 * summed}


def test_what_can_never_be_kept_is_refused_with_bytes_and_setting(model: HybridLM, tokenizer: Tokenizer) -> None:
    bench = Bench(model, tokenizer, 10)
    each = sum(model.config.archive_bytes_per_block(Dtype.FLOAT32))
    with pytest.raises(NeverFits, match=f"{15 * each} bytes of pool 'kv_archive', which has {10 * each}.*FANO_ARCHIVE"):
        bench.engine.submit(request("a", bench.text(1100), max_tokens=2))
    none = Bench(model, tokenizer, 0)
    with pytest.raises(InvalidRequest, match=r"policy.name is 'archive'"):
        none.engine.submit(request("a", none.text(10)))
    many = AttentionPolicy(PolicyName.ARCHIVE, 64, 64, 1025)
    with pytest.raises(InvalidRequest, match=r"policy.select is 1025"):
        bench.engine.submit(request("a", bench.text(10), policy=many))
    with pytest.raises(InvalidRequest, match="select_from is -1"):
        bench.engine.submit(request("a", bench.text(10), select_from=-1))


def test_where_selection_begins_decides_what_is_taken_up(model: HybridLM, tokenizer: Tokenizer) -> None:
    bench = Bench(model, tokenizer, 60)
    document = bench.text(640)
    bench.ask("read", document, 0, is_background=True, select_from=640)
    question = document + bench.text(40)
    assert bench.ask("asked", question, select_from=640).usage.num_cached_tokens == 640
    assert bench.ask("again", question, select_from=640).usage.num_cached_tokens == 680
    # Selecting from the beginning on it would have remembered something else; up to there nobody selects.
    assert bench.ask("other", question, select_from=0).usage.num_cached_tokens <= 192
    assert bench.ask("window", question, policy=AttentionPolicy(PolicyName.WINDOW, 64, 64)).usage.num_cached_tokens == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", list(InstructionSet))
def test_native_attention_over_the_archive_is_that_of_the_reference(level: InstructionSet, dtype: torch.dtype) -> None:
    """Of blocks far enough apart that rounding changes no choice; selecting all equals full, to the bit."""
    kernels, generator = kernels_at(level), torch.Generator().manual_seed(1)
    heads, groups, width, num_tokens, first = 6, 2, 24, 70, 800
    num_blocks = -(-(first + num_tokens) // 64)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    offsets = 2 * draw(num_blocks, 1, groups, width)
    keys, values = (
        (draw(num_blocks, 64, groups, width) + offsets).to(dtype),
        draw(num_blocks, 64, groups, width).to(dtype),
    )
    queries = draw(num_tokens, heads, width).to(dtype)
    memory = torch.zeros(5, 1, 2, 64, groups, width, dtype=dtype)
    file = torch.zeros(num_blocks, 1, 2, 64, groups, width, dtype=dtype)
    summaries = torch.zeros(1, groups, 5 + num_blocks, *summary_shape(width, dtype.itemsize), dtype=dtype)
    numbers = torch.randperm(5 + num_blocks, generator=generator)[:num_blocks].tolist()
    table = array("q", [-1, *numbers[1:]])
    layer = ArchivedLayer(memory, file, summaries, 0, [table], [0])
    for place in range(1, num_blocks):
        layer.put(table[place], keys[place], values[place])
    starts = torch.tensor([0, num_tokens])
    for select in (1, 3, num_blocks):
        policy = AttentionPolicy(PolicyName.ARCHIVE, 64, 128, select)
        window = policy.window_start(first) // 64
        # What left the window before is not in the pool any more.
        blocks = array("q", [place if place == 0 or place >= window else -1 for place in range(num_blocks)])
        where = starts, [first], [blocks], [policy]
        found = kernels.attend(queries, keys, values, *where, layer)
        expected = REFERENCE.attend(queries, keys, values, *where, layer)
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        assert torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance), select
    whole = [starts, [first], [array("q", range(num_blocks))], [AttentionPolicy()]]
    assert torch.equal(found, kernels.attend(queries, keys, values, *whole))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", list(InstructionSet))
@pytest.mark.parametrize("width", [7, 64])
def test_of_equal_blocks_the_earlier_is_chosen_wherever_they_lie(
    level: InstructionSet, dtype: torch.dtype, width: int
) -> None:
    """Keys repeat, so that most scores are ties; blocks lie in order, in part, and at random, and tokens are asked
    alone and together, across the border of a window. Widths that fill no pair, and no register."""
    kernels, generator = kernels_at(level), torch.Generator().manual_seed(5)
    groups, sharing, num_tokens, first, num_blocks, select = 2, 7, 33, 1900, 31, 9

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    keys = draw(5, 64, groups, width)[torch.randint(5, (num_blocks,), generator=generator)]
    values, queries = draw(num_blocks, 64, groups, width), draw(num_tokens, groups * sharing, width)
    policy = AttentionPolicy(PolicyName.ARCHIVE, 64, 64, select)
    blocks = array("q", [place if place in (0, 28, 29, 30) else -1 for place in range(num_blocks)])
    shuffled = torch.randperm(40, generator=generator)[:num_blocks].tolist()
    told = []
    for numbers in (list(range(3, 34)), [*range(10, 20), *range(30, 39), *range(10), 20, 21], shuffled):
        kept = torch.zeros(2, 20, 1, 2, 64, groups, width, dtype=dtype)
        summaries = torch.zeros(1, groups, 40, *summary_shape(width, dtype.itemsize), dtype=dtype)
        layer = ArchivedLayer(kept[0], kept[1], summaries, 0, [array("q", numbers)], [0])
        for place, number in enumerate(numbers):
            layer.put(number, keys[place], values[place])
        for together in (num_tokens, 1):
            parts = [
                kernels.attend(part, keys, values, torch.tensor([0, len(part)]), [at], [blocks], [policy], layer)
                for at, part in zip(range(first, first + num_tokens, together), queries.split(together), strict=True)
            ]
            told.append(torch.cat(parts))
        where = torch.tensor([0, num_tokens]), [first], [blocks], [policy], layer
        told_by_reference = REFERENCE.attend(queries, keys, values, *where)
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        assert torch.allclose(told[-1].float(), told_by_reference.float(), rtol=tolerance, atol=tolerance)
    assert all(torch.equal(each, told[0]) for each in told)


def test_queries_are_rounded_to_the_dtype_of_the_keys_before_they_choose() -> None:
    """1 + 2^-9 is 1 in bfloat16, so that both blocks are equal and the earlier is chosen."""
    query, keys = torch.tensor([[[1.0, 1 + 2**-9]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    policy = AttentionPolicy(PolicyName.ARCHIVE, 0, 64, 1)
    for dtype, expected in ((torch.float32, [False, True, False]), (torch.bfloat16, [True, False, False])):
        memory = torch.zeros(2, 1, 2, 64, 1, 2, dtype=dtype)
        layer = ArchivedLayer(
            memory, memory[:0], torch.zeros(1, 1, 2, *summary_shape(2, dtype.itemsize)).to(dtype), 0, [[0, 1]], [0]
        )
        for number in range(2):
            layer.put(number, keys[number].expand(64, 1, 2), keys[number].expand(64, 1, 2))
        assert choose(query, layer, 0, 191, policy, 3)[0, 0].tolist() == expected
