"""The archive where attention is not on the host: what is fetched, when, and that it gives what the host would.

The host itself stands for the device, through a device that is late.
"""

import gc
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes_late import LateDevice, LateLink
from fakes_live import LiveBytes
from fakes_model import TINY_CONFIG, Reader, fetching, kernels_at, load, random_ids, relative_difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.batch import Batch, SequenceChunk
from model.cache import device_copies
from model.cache.block_pool import BlockPool, BlockTable
from model.cache.device_copies import DirectLift, lift_to, verified_lift
from model.cache.fetched_blocks import FetchedBlocks
from model.cache.host_copies import HostCopies
from model.cache.kv_archive import KvArchive
from model.cache.plan import MemoryPlan
from model.config import Dtype, EngineConfig, ModelConfig
from model.decode_graphs import DecodeGraphs
from model.hybrid import HybridLM
from model.kernels import REFERENCE
from model.kernels.native import InstructionSet
from model.kernels.selection import ArchivedLayer, chosen_places, summary
from model.layers.fetching import FetchingStep
from model.policy import AttentionPolicy, PolicyName
from model.tiles import summary_shape

CONFIG = ModelConfig.from_dict(TINY_CONFIG | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6})
BLOCK, SUMMARY = CONFIG.archive_bytes_per_block(Dtype.FLOAT32)
POLICY = AttentionPolicy(PolicyName.ARCHIVE, 64, 64, 2)


def archive_of(num_near: int, num_far: int) -> KvArchive:
    return KvArchive(CONFIG, Dtype.FLOAT32, num_near * (BLOCK + SUMMARY) + num_far * SUMMARY, num_far * BLOCK)


class Layers:
    """Sequences in pools of the tiny model's attention layers, read layer by layer with random queries, twice: fetching
    through a late device, and with the reference on the host."""

    def __init__(self, dice: Random, num_fetched: int, num_near: int, num_far: int = 30) -> None:
        self.device = LateDevice(dice)
        self.archive = archive_of(num_near, num_far)
        self.fetched = FetchedBlocks(
            CONFIG, Dtype.FLOAT32, num_fetched, self.archive, lift=self.device, copies=HostCopies(LateLink())
        )
        self.blocks = BlockPool(CONFIG, 40, Dtype.FLOAT32, archive=self.archive, fetched=self.fetched)
        self.generator = torch.Generator().manual_seed(dice.randrange(1 << 30))
        # Attention when the device comes to it.
        self.kernels = replace(REFERENCE, attend_listed=self.attend_listed)
        self.sequences: list[SimpleNamespace] = []
        self.results: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attend_listed(self, *given) -> None:
        self.device.run(lambda: REFERENCE.attend_listed(*given))

    def open(self, policy: AttentionPolicy, select_from: int) -> None:
        self.sequences.append(SimpleNamespace(policy=policy, start=select_from, end=0, table=BlockTable(self.blocks)))

    def fork(self, index: int) -> None:
        origin = self.sequences[index]
        self.sequences.append(SimpleNamespace(**vars(origin) | {"table": origin.table.fork()}))

    def close(self, index: int) -> None:
        self.sequences.pop(index).table.free()

    def step(self, parts: list[tuple[int, int]]) -> None:
        chunks = []
        for slot, (index, count) in enumerate(parts):
            each = self.sequences[index]
            each.table.release_hidden(each.policy, each.end)
            each.table.prepare(each.end, each.end + count)
            leaving = each.table.leave(each.policy, each.end + count)
            chunk = [0] * count, each.end, slot, each.table.blocks, each.policy
            archived = each.table.archive.numbers
            chunks.append(SequenceChunk(*chunk, archived=archived, select_from=each.start, leaving=leaving))
            each.end += count
        batch = Batch.pack(chunks)
        step = FetchingStep(batch, self.fetched)
        where = batch.query_start, batch.first_positions, batch.block_tables, batch.policies
        for index in range(CONFIG.num_attention_layers):
            keys, values = self.blocks.keys[index], self.blocks.values[index]
            for pool in (keys, values):
                drawn = torch.randn(batch.num_tokens, *pool.shape[2:], generator=self.generator)
                pool.flatten(0, 1)[batch.kv_rows] = drawn
            queries = torch.randn(
                batch.num_tokens, CONFIG.num_heads, CONFIG.head_width, generator=self.generator
            )  # fmt: skip
            layer = ArchivedLayer(
                *self.archive.keys_values, self.archive.summaries, index, batch.archived, batch.select_from
            )
            # The pools are written to by later steps, in the order of the steps' stream.
            found = step.attend(self.kernels, queries, keys.clone(), values.clone(), layer)
            self.results.append((found, REFERENCE.attend(queries, keys, values, *where, layer)))
        step.end()

    def check(self) -> None:
        self.device.drain()
        for found, expected in self.results:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# A choice between blocks of random keys is close, and is taken by float64 on both sides: there are no ties.
sizes = st.integers(1, 150)
actions = st.one_of(
    st.tuples(st.just("open"), st.integers(1, 3), st.integers(0, 300)),
    st.tuples(st.just("read"), st.lists(sizes, min_size=1, max_size=3), st.integers(0, 9)),
    st.tuples(st.just("draw"), st.integers(1, 4), st.integers(0, 9)),
    st.tuples(st.sampled_from(["fork", "close"]), st.just(0), st.integers(0, 9)),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    told=st.lists(actions, min_size=3, max_size=14), seed=st.integers(0, 1 << 16), room=st.sampled_from([3, 4, 6, 40])
)
def test_nothing_is_read_before_it_came_or_overwritten_while_it_is_used(told: list, seed: int, room: int) -> None:
    """Any schedule, a pool that is too small for most steps, and blocks of which some lie in the file."""
    dice = Random(seed)
    layers = Layers(dice, room, num_near=dice.choice([2, 40]))
    layers.open(POLICY, 0)
    layers.step([(0, 260)])
    for action, number, other in told:
        count = len(layers.sequences)
        if action == "open" and count < 4:
            layers.open(replace(POLICY, select=number), other)
        elif action == "read":
            parts = [((other + offset) % count, size) for offset, size in enumerate(number[:count])]
            if all(layers.sequences[index].end + size < 700 for index, size in parts):
                layers.step(parts)
        elif action == "draw":
            parts = [((other + offset) % count, 1) for offset in range(min(number, count))]
            layers.step(parts)
        elif action == "fork" and count < 4:
            layers.fork(other % count)
        elif action == "close" and count > 1:
            layers.close(other % count)
    layers.check()


def test_what_is_there_already_is_not_fetched_again() -> None:
    """By an earlier step, or for another sequence with the same past."""
    layers = Layers(Random(1), num_fetched=8, num_near=40)
    layers.open(replace(POLICY, select=4), 400)
    layers.step([(0, 400)])
    fetched = layers.fetched
    assert (fetched.num_fetched, fetched.num_found) == (0, 0), "nobody has selected"
    layers.fork(0)
    # Both see all four blocks, of two key heads in two layers.
    for found in (0, 16):
        layers.step([(0, 1), (1, 1)])
        assert (fetched.num_fetched, fetched.num_found) == (16, found)
    layers.check()


def test_the_strip_whose_use_is_longest_ago_makes_room_and_a_number_given_anew_is_another_block() -> None:
    archive = archive_of(6, 6)
    fetched = FetchedBlocks(CONFIG, Dtype.FLOAT32, 2, archive)
    layer = ArchivedLayer(*archive.keys_values, archive.summaries, 1, [], [])

    def content(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = CONFIG.num_attention_layers, 64, CONFIG.num_kv_heads, CONFIG.head_width
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

    blocks = [archive.put(*content(seed)) for seed in range(8)]

    def bring(*strips: tuple[int, int]) -> int:
        """How many were fetched; whatever was asked for is there."""
        before = fetched.num_fetched
        numbers, groups = np.array(strips, dtype=np.int64).T
        for (number, group), slot in zip(strips, fetched.bring(layer, numbers, groups).tolist(), strict=True):
            for part, pool in enumerate((blocks[number].keys, blocks[number].values)):
                assert torch.equal(fetched.strips[1, slot, part], pool[1, :, group])
        assert len(set(fetched.bring(layer, numbers, groups).tolist())) == len(strips)
        return fetched.num_fetched - before

    assert bring((0, 0), (0, 1)) == 2
    # Some of them lie in the file.
    assert bring((7, 1), (3, 0)) == 2
    assert bring((0, 1)) == 0
    # There is room for four; those of which 0 and 7 were not used last.
    assert bring((5, 0)) == 1 and bring((0, 1), (3, 0), (7, 1)) == 0
    assert bring((0, 0), (1, 1), (2, 1)) == 3 and bring((7, 1)) == 0 and bring((3, 0)) == 1
    number = blocks[7].number
    blocks[7] = None
    blocks[7] = archive.put(*content(99))
    assert blocks[7].number == number == 7 and bring((7, 1)) == 1
    with pytest.raises(AssertionError, match="5 strips in a pool of 4"):
        bring(*((number, 0) for number in range(5)))


@pytest.fixture(scope="module")
def models(checkpoints) -> dict[str, HybridLM]:
    """The same checkpoint, as the host and as a device runs it."""
    directory = checkpoints["mqa"].directory
    chooser = kernels_at(InstructionSet.PORTABLE).choose
    return {"host": load(directory), "device": load(directory, kernels=fetching(chooser))}


def test_a_step_that_failed_leaves_nothing_on_its_way(models: dict[str, HybridLM]) -> None:
    reader = Reader(models["device"])
    sequence = reader.open(POLICY)
    sequence.read(random_ids(200, 1))
    archive, fetched = reader.archive, reader.fetched
    (kept,) = sequence.table.archive.blocks
    before = kept.keys.clone()
    layer = ArchivedLayer(*archive.keys_values, archive.summaries, 0, [], [])
    fetched.leave(layer, torch.tensor([0]), [kept.number], reader.blocks.keys[0] + 1, reader.blocks.values[0])
    sequence.read(random_ids(3, 2))
    assert torch.equal(kept.keys, before)


def test_what_left_is_in_the_archive_when_the_step_is_over(models: dict[str, HybridLM], monkeypatch) -> None:
    """Also where nobody selected, as while a document is read."""
    monkeypatch.setattr(HostCopies, "of", staticmethod(lambda device: HostCopies(LateLink())))
    told = []
    for model in models.values():
        sequence = Reader(model).open(POLICY, 10_000)
        sequence.read(random_ids(500, 1), splits=[300])
        told.append(sequence.table.archive.blocks)
    assert len(told[0]) == len(told[1]) == 5
    for block, same in zip(*told, strict=True):
        assert torch.equal(block.keys, same.keys) and torch.equal(block.values, same.values)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=st.lists(
        st.tuples(st.integers(2, 400), st.integers(0, 300), st.integers(1, 4), st.integers(0, 1 << 16)),
        min_size=1,
        max_size=3,
    ),
    num_fetched=st.sampled_from([4, 16]),
)
def test_a_device_gives_what_the_host_gives(models: dict[str, HybridLM], drawn: list, num_fetched: int) -> None:
    """Prompts beside each other and then drawn tokens, with copies to the host that are late; and bit for bit what each
    sequence gives alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostCopies, "of", staticmethod(lambda device: HostCopies(LateLink())))
        host, device = (Reader(models[side], num_blocks=64, num_fetched=num_fetched) for side in ("host", "device"))
        alone = [Reader(models["device"]) for _ in drawn]
        opened = [
            [reader.open(replace(POLICY, select=select), start) for (_, start, select, _) in drawn]
            for reader in (host, device)
        ]
        singles = [
            reader.open(replace(POLICY, select=select), start)
            for reader, (_, start, select, _) in zip(alone, drawn, strict=True)
        ]
        for size in (None, 1, 1):
            texts = [random_ids(size or count, seed + (size or 0)) for count, _, _, seed in drawn]
            expected, found = (
                reader.step(list(zip(side, texts, strict=True)))
                for reader, side in zip((host, device), opened, strict=True)
            )
            for index, (logits, wanted) in enumerate(zip(found, expected, strict=True)):
                assert relative_difference(logits, wanted) <= 1e-4
                # Products of torch are what several rows and one differ by.
                assert relative_difference(singles[index].read(texts[index]), logits) <= 1e-4
        for one, other in zip(*opened, strict=True):
            for block, same in zip(one.table.archive.blocks, other.table.archive.blocks, strict=True):
                torch.testing.assert_close(block.keys, same.keys, rtol=0, atol=1e-4)
                assert torch.equal(device.archive.summaries[:, :, same.number], summary(same.keys))


def test_the_temporaries_of_a_step_that_selects_are_in_the_plan(models: dict[str, HybridLM]) -> None:
    """Those of the host count, too, where it stands for the device."""
    model = models["device"]
    policy = replace(POLICY, select=8)
    engine = EngineConfig(num_slots=2, max_context_tokens=4096, policy=policy, prefill_chunk_tokens=128, device="cuda")
    plan = MemoryPlan.of(model.config, engine)
    reader = Reader(model, num_fetched=plan.num_fetched_blocks)
    sequence, fetched = reader.open(policy, 1150), reader.fetched
    held = [*model.parameters(), reader.states.ssm, reader.states.conv, reader.blocks.keys, reader.blocks.values]
    held += [fetched.strips, fetched._room, *reader.archive.keys_values, reader.archive.summaries]
    sequence.read(random_ids(1152, 1), splits=range(128, 1152, 128))
    peaks = []
    for count in (40, 1):
        batch = Batch.pack([replace(sequence.chunk([1] * count), num_logits=1)])
        gc.collect()
        with LiveBytes(held) as counter:
            model(batch, reader.states, reader.blocks)
        peaks.append(counter.peak)
    assert fetched.num_fetched > 0 and max(peaks) <= plan.workspace_bytes
    assert MemoryPlan.of(model.config, replace(engine, device="cpu")).workspace_bytes < plan.workspace_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("level", list(InstructionSet))
def test_the_native_host_chooses_what_its_twin_chooses(level: InstructionSet, dtype: torch.dtype) -> None:
    """Several sequences at once, prompts and single tokens, with more and with fewer blocks than they select. Blocks
    are far enough apart that rounding decides nothing."""
    generator = torch.Generator().manual_seed(3)
    groups, sharing, width, num_blocks = 2, 3, 24, 30

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    keys = (draw(num_blocks, 64, groups, width) + 2 * draw(num_blocks, 1, groups, width)).to(dtype)
    memory, file = torch.zeros(2, num_blocks, 1, 2, 64, groups, width, dtype=dtype)
    summaries = torch.zeros(1, groups, 2 * num_blocks, *summary_shape(width, dtype.itemsize), dtype=dtype)
    table = torch.randperm(2 * num_blocks, generator=generator)[:num_blocks].tolist()
    policies = [replace(POLICY, select=select, sinks=sinks) for select, sinks in ((5, 64), (1, 0), (9, 64), (2, 128))]
    firsts, counts, starts = [700, 1800, 450, 1200], [70, 1, 33, 1], [0, 0, 470, 0]
    layer = ArchivedLayer(memory, file, summaries, 0, [table] * 4, starts)
    for place, number in enumerate(table):
        layer.put(number, keys[place], keys[place])
    queries = draw(sum(counts), groups * sharing, width).to(dtype)
    given = queries, torch.tensor([0, *counts]).cumsum(0), firsts, policies, layer
    expected, found = chosen_places(*given), kernels_at(level, num_threads=2).choose(*given)
    assert expected.shape == (105, 2, 9) and torch.equal(found, expected)
    # Those that come before selection begins choose nothing; the others as many as they select or as there are.
    assert (expected[71:91] == -1).all() and (expected[91:104] >= 0).sum(-1).tolist() == [[5, 5]] * 13
    assert (expected[:70] >= 0).sum(-1).unique().tolist() == [5]


def test_a_step_in_which_the_host_has_a_part_is_not_replayed(models: dict[str, HybridLM]) -> None:
    kernels = replace(models["device"].kernels, frame=lambda *size: None)
    model = load_like(models["device"], kernels)
    reader = Reader(model)
    graphs = DecodeGraphs(model, reader.states, reader.blocks, None, 4)
    sequence = reader.open(POLICY, 270)
    sequence.read(random_ids(189, 1))

    def size() -> "tuple[int, int] | None":
        return graphs.size_of(Batch.pack([sequence.chunk([1])]))

    assert size() == (1, 64), "nothing has left and nothing can be selected"
    assert size() is None, "a block leaves"
    assert size() == (1, 64), "there is one to select, but selection has not begun"
    sequence.read(random_ids(269 - sequence.num_tokens, 2))
    assert size() == (1, 64) and size() is None


def load_like(model: HybridLM, kernels) -> HybridLM:
    made = HybridLM(model.config, kernels, model.dtype)
    for (_, target), (_, source) in zip(made.named_parameters(), model.named_parameters(), strict=True):
        target.copy_(source)
    return made


class TardyLift(DirectLift):
    """Reads what it was told to send when it is waited for."""

    def __init__(self) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def send(self, pairs) -> None:
        self.pairs += pairs

    def wait(self) -> None:
        super().send(self.pairs)


class LosingLift(DirectLift):
    def send(self, pairs) -> None:
        pass


@pytest.mark.parametrize("kind", [TardyLift, LosingLift])
def test_a_lift_that_does_not_deliver_is_not_used(kind, monkeypatch, caplog) -> None:
    monkeypatch.setattr(device_copies, "CudaLift", lambda device: DirectLift())
    assert verified_lift("cpu") is not None and not caplog.text
    monkeypatch.setattr(device_copies, "CudaLift", lambda device: kind())
    assert type(verified_lift("cpu")) is DirectLift
    assert "what arrived was not what was sent" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_cannot_be_reached_is_told_and_copied_to_at_once(caplog) -> None:
    assert type(lift_to("cuda")) is DirectLift
    assert [record.message.split(":")[0] for record in caplog.records] == ["copies to cuda are waited for one by one"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_sent_to_a_device_arrives_in_order() -> None:
    lift = lift_to("cuda")
    assert type(lift) is not DirectLift
    room, target = lift.room((4, 1 << 20), torch.float32), torch.zeros(4, 1 << 20, device="cuda")
    seen = []
    for turn in range(20):
        lift.wait()
        room.fill_(turn)
        seen.append(target.sum())
        lift.send([(room[row], target[row]) for row in range(4)])
    assert [int(each) for each in seen] == [max(0, turn - 1) * (4 << 20) for turn in range(20)]
