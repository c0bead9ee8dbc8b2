"""Copies to the host that arrive late: nobody reads them before they did, and the source may change meanwhile."""

import logging

import pytest
import torch
from fakes_late import LATE, LateLink
from fakes_model import Reader, load, random_ids

from model.cache import host_copies
from model.cache.checkpoints import Checkpoints
from model.cache.held import Held, bring_back
from model.cache.host_copies import HostCopies, verified_link
from model.cache.place import Place


def test_a_copy_is_that_of_the_moment_it_was_begun():
    copies = HostCopies(LateLink())
    source = torch.arange(12.0).view(3, 4)
    expected = source[:, 1].clone()
    copy = copies.begin(source[:, 1])
    source.zero_()
    copies.settle()
    assert torch.equal(copy, expected) and copy.is_contiguous()
    copy.fill_(5)
    copies.settle()
    assert (copy == 5).all(), "what was filled once is filled again"


def test_without_a_link_a_copy_is_complete_at_once():
    source = torch.arange(12.0).view(3, 4)
    copy = HostCopies.of("cpu").begin(source[:, 1])
    expected = source[:, 1].clone()
    source.zero_()
    assert torch.equal(copy, expected) and copy.is_contiguous()


@pytest.fixture
def late_reader(checkpoints, monkeypatch):
    monkeypatch.setattr(HostCopies, "of", staticmethod(lambda device: HostCopies(LateLink())))
    return Reader(load(checkpoints["dense"].directory), num_slots=4, num_blocks=8)


def forget_everything(reader):
    """What another sequence might do with the memory right after it was given back."""
    for pool in (reader.states.ssm, reader.states.conv, reader.blocks.keys, reader.blocks.values):
        pool.fill_(-3)


def test_what_moved_to_the_host_comes_back_whole(late_reader):
    sequence = late_reader.open()
    sequence.read(random_ids(70, 0))
    expected = sequence.memory()
    held = Held(sequence.slot, sequence.table)
    # What an earlier holder left behind the sixth token of the second block: it stays there and goes nowhere.
    left = [
        pool[:, sequence.table.blocks[1], 6:].fill_(9) for pool in (late_reader.blocks.keys, late_reader.blocks.values)
    ]
    snapshot = held.snapshot(late_reader.states, 70)
    assert all((tail == 9).all() for tail in left)
    held.free(late_reader.states)
    forget_everything(late_reader)
    back = bring_back(snapshot, late_reader.states, late_reader.blocks)
    found = late_reader.states.ssm[:, back.slot], late_reader.states.conv[:, back.slot]
    assert all(torch.equal(one, other) for one, other in zip(found, expected[:2], strict=True))
    assert torch.equal(late_reader.blocks.keys[:, back.table.blocks[0]], expected[2][0][:, 0])
    for pool, content in zip((late_reader.blocks.keys, late_reader.blocks.values), expected[2], strict=True):
        last = pool[:, back.table.blocks[1]]
        assert torch.equal(last[:, :6], content[:, 1, :6]) and not last[:, 6:].any()


@pytest.mark.parametrize("is_stepped_down", [False, True])
def test_a_snapshot_that_is_handed_out_has_arrived(late_reader, is_stepped_down):
    sequence = late_reader.open()
    sequence.read(random_ids(70, 0))
    expected = sequence.memory()
    ids = tuple(random_ids(70, 0))
    kept = Checkpoints(late_reader.states, late_reader.blocks, 1 << 30)
    kept.keep("tree", ids, 70, Held(sequence.slot, sequence.table).keep(late_reader.states), Place.TURN)
    (checkpoint,) = kept.path("tree", ids)
    if is_stepped_down:
        kept.make_room(4, 0)
        assert checkpoint.held is None
        forget_everything(late_reader)
    snapshot = kept.snapshot(checkpoint)
    assert torch.equal(snapshot.ssm, expected[0]) and torch.equal(snapshot.conv, expected[1])
    assert torch.equal(snapshot.blocks[0].keys, expected[2][0][:, 0])
    kept.check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_cannot_be_reached_is_told_and_copied_from_at_once(caplog):
    with caplog.at_level(logging.WARNING):
        assert verified_link("cuda") is None
    assert [record.message.split(":")[0] for record in caplog.records] == ["copies from cuda are waited for one by one"]


class LosingLink(LateLink):
    def wait(self):
        self.sent.clear()


class TardyLink(LateLink):
    """Reads the source when it is waited for, which is too late."""

    def send(self, source):
        arriving = torch.full(source.shape, LATE).to(source.dtype)
        self.sent.append((arriving, source))
        return arriving


@pytest.mark.parametrize("kind", [LosingLink, TardyLink])
def test_a_link_that_does_not_deliver_is_not_used(kind, monkeypatch, caplog):
    monkeypatch.setattr(host_copies, "CudaLink", lambda device: LateLink())
    assert verified_link("cpu") is not None
    monkeypatch.setattr(host_copies, "CudaLink", lambda device: kind())
    with caplog.at_level(logging.WARNING):
        assert verified_link("cpu") is None
    assert "what arrived was not what was sent" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_from_a_device_arrive():
    copies = HostCopies(verified_link("cuda"))
    assert copies._link is not None
    source = torch.randn(4, 1 << 20, device="cuda")
    expected = source.cpu()
    begun = [copies.begin(row) for row in source]
    source.zero_()
    copies.settle()
    assert torch.equal(torch.stack(begun), expected)
