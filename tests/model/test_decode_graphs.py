"""Recording and replaying decode steps, with a recorder that runs them again: which goes where, and what it writes."""

import logging

import pytest
import torch
from fakes_model import Reader, load, random_ids
from fakes_triton import CallingRecorder, TabledReference

from model.batch import Batch, SequenceChunk
from model.decode_graphs import LEAST_WIDTH, DecodeGraphs
from model.kernels import REFERENCE
from model.policy import AttentionPolicy, PolicyName

FULL = AttentionPolicy()
WINDOW = AttentionPolicy(PolicyName.WINDOW, 64, 64)
NUM_SLOTS = 6


class Pair:
    """The same model and sequences twice: once replayed and once launched step by step."""

    def __init__(self, checkpoints, kernels=None, max_rows=5):
        directory = checkpoints["dense"].directory
        self.replaying = Reader(load(directory, kernels=kernels or TabledReference().kernels()), NUM_SLOTS, 24)
        self.launching = Reader(load(directory, kernels=REFERENCE), NUM_SLOTS, 24)
        self.recorder = CallingRecorder()
        pools = self.replaying.states, self.replaying.blocks
        self.graphs = DecodeGraphs(self.replaying.model, *pools, self.recorder, max_rows)
        self.sequences = []

    def open(self, num_tokens, policy=FULL):
        ids = random_ids(num_tokens, len(self.sequences))
        both = [reader.open(policy) for reader in (self.replaying, self.launching)]
        for each in both:
            each.read(ids)
        self.sequences.append(both)

    def step(self, chosen, seed=7):
        ids = random_ids(len(chosen), seed)
        logits = []
        for side in (0, 1):
            chunks = [
                self.sequences[index][side].chunk([token], is_decode=True)
                for index, token in zip(chosen, ids, strict=True)
            ]
            batch = Batch.pack(chunks)
            pools = self.launching.states, self.launching.blocks
            read = self.graphs.read(batch) if side == 0 else self.launching.model.read(batch, *pools)
            logits.append(read.logits)
        return logits

    def assert_same_pools(self):
        for name in ("ssm", "conv"):
            both = [getattr(reader.states, name) for reader in (self.replaying, self.launching)]
            torch.testing.assert_close(*both, rtol=0, atol=1e-5)
        for name in ("keys", "values"):
            both = [getattr(reader.blocks, name) for reader in (self.replaying, self.launching)]
            torch.testing.assert_close(*both, rtol=0, atol=1e-5)


@pytest.fixture
def pair(checkpoints):
    pair = Pair(checkpoints)
    for num_tokens, policy in ((3, FULL), (64, WINDOW), (200, WINDOW), (130, FULL)):
        pair.open(num_tokens, policy)
    return pair


def test_replayed_steps_give_what_launched_steps_give_and_touch_nothing_else(pair):
    # Three rows of four are used after all four were: what a padding row still wrote would be seen.
    for turn, chosen in enumerate([(0, 1, 2), (3, 2, 1, 0), (2, 0, 3), (3,), (1, 3)]):
        replayed, launched = pair.step(chosen, seed=turn)
        torch.testing.assert_close(replayed, launched, rtol=0, atol=1e-4)
    pair.assert_same_pools()
    assert pair.graphs.num_replayed == 5
    assert pair.recorder.num_recorded == 3  # of 4, 1 and 2 rows


def test_logits_of_an_earlier_step_stay_what_they_were(pair):
    first, _ = pair.step((0, 1))
    kept = first.clone()
    pair.step((2, 3), seed=8)
    assert torch.equal(first, kept)


def chunk(position=0, num_tokens=1, *, policy=FULL, is_decode=True, num_logits=1, slot=0, next_ids=None):
    blocks = list(range(-(-(position + num_tokens) // 64)))
    return SequenceChunk([0] * num_tokens, position, slot, blocks, policy, num_logits, is_decode, next_ids)


@pytest.mark.parametrize(
    ("chunks", "size"),
    [
        ([chunk()], (1, LEAST_WIDTH)),
        ([chunk(slot=slot) for slot in range(3)], (4, LEAST_WIDTH)),
        ([chunk(slot=slot) for slot in range(5)], (5, LEAST_WIDTH)),
        ([chunk(slot=slot) for slot in range(6)], None),
        ([chunk(LEAST_WIDTH * 64 - 1)], (1, LEAST_WIDTH)),
        ([chunk(LEAST_WIDTH * 64)], (1, 2 * LEAST_WIDTH)),
        ([chunk(1000 * 64, policy=WINDOW)], (1, LEAST_WIDTH)),
        ([chunk(is_decode=False)], None),
        ([chunk(), chunk(num_tokens=2, slot=1, is_decode=False)], None),
        ([chunk(num_logits=0)], None),
        ([chunk(next_ids=[3])], None),
    ],
)
def test_a_step_goes_to_the_smallest_recording_that_it_fits(pair, chunks, size):
    assert pair.graphs.row_counts == [1, 2, 4, 5]
    assert pair.graphs.size_of(Batch.pack(chunks)) == size


def test_what_fits_no_recording_is_launched(pair):
    ids = random_ids(5, 11)
    sequence = pair.sequences[0][0]
    read = pair.graphs.read(Batch.pack([sequence.chunk(ids)]))
    torch.testing.assert_close(read.logits, pair.sequences[0][1].read(ids), rtol=0, atol=1e-4)
    assert (pair.graphs.num_replayed, pair.recorder.num_recorded) == (0, 0)


def test_a_replay_that_agrees_passes_and_gives_back_what_it_took(pair):
    before = pair.replaying.states.num_free, pair.replaying.blocks.num_free
    assert pair.graphs.disagreement() is None
    assert (pair.replaying.states.num_free, pair.replaying.blocks.num_free) == before
    for both in pair.sequences:
        for one, other in zip(both[0].memory(), both[1].memory(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("lost", "after", "named"), [("logits", 1, "logits differ"), ("ssm", 3, "ssm differ"), ("keys", 3, "keys differ")]
)
def test_a_replay_that_differs_is_not_used(pair, monkeypatch, lost, after, named):
    record, replayed = pair.recorder.record, []

    def wrong(run):
        result, replay = record(run)
        tensors = {"logits": result, "ssm": pair.replaying.states.ssm, "keys": pair.replaying.blocks.keys}

        def replay_and_lose():
            replay()
            replayed.append(1)
            if len(replayed) == after:
                tensors[lost].zero_()

        return result, torch.inference_mode()(replay_and_lose)

    monkeypatch.setattr(pair.recorder, "record", wrong)
    found = pair.graphs.disagreement()
    assert found is not None and found.startswith(f"replayed at 1 rows, {named} by ")


def test_where_recording_fails_the_step_is_launched_and_it_is_said_once(pair, monkeypatch, caplog):
    def fail(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(pair.recorder, "record", fail)
    with caplog.at_level(logging.WARNING):
        for turn in range(2):
            replayed, launched = pair.step((0, 2), seed=turn)
            torch.testing.assert_close(replayed, launched, rtol=0, atol=1e-4)
    assert [record.message for record in caplog.records] == [
        "decode steps of 2 rows and 64 blocks are not replayed: operation not permitted when stream is capturing"
    ]
    assert pair.graphs.disagreement() == "a step of 1 rows cannot be recorded"


def test_without_a_device_nothing_is_recorded(pair):
    reader = pair.launching
    graphs, reason = DecodeGraphs.verified(reader.model, reader.states, reader.blocks, "cpu", 4)
    assert graphs is None and reason == "kernels reference on cpu have none"
