"""Segments: what is read is what was written, or a named error; the files are ordinary safetensors."""

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fakes_vault import Disk, block, on_disk, same_snapshot, snapshot, tokens
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.cache.snapshot import BlockContent, Snapshot
from server.sessions.errors import SegmentDamaged
from server.sessions.manifest import RUN_TOKENS, BlockRun
from server.sessions.packing import Packer, Unpacker, num_shared, open_tokens, seal_tokens
from server.sessions.segments import RawTensor, SegmentKind, Segments, seal


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with on_disk(Disk()):
        yield


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    (tmp_path / "segments").mkdir()
    return Segments(tmp_path / "segments")


def packed(segments: Segments, *snapshots: Snapshot) -> Packer:
    packer = Packer()
    for each in snapshots:
        packer.pack(each)
    segments.write(packer.sealed.values())
    return packer


def test_a_segment_lies_under_the_hash_of_its_bytes_for_this_user_alone(segments: Segments) -> None:
    _, sealed = seal_tokens(tokens(100))
    segments.write(sealed.values())
    (name,) = sealed
    path = segments.path(name)
    assert path.parent.name == name[:2] and hashlib.sha256(path.read_bytes()).hexdigest() == name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.stat().st_size == sealed[name].ref.num_bytes
    assert segments.scan() == ({name: path.stat().st_size}, [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_files_are_safetensors_that_others_read(segments: Segments, dtype: torch.dtype) -> None:
    packer = Packer()
    checkpoint = packer.pack(snapshot(200, 1, dtype))
    segments.write(packer.sealed.values())
    state = safetensors.torch.load_file(segments.path(checkpoint.state.name))
    assert set(state) == {"ssm", "conv", "hidden"} and torch.equal(state["ssm"], snapshot(200, 1, dtype).ssm)
    (run,) = checkpoint.block_runs
    blocks = safetensors.torch.load_file(segments.path(run.segment.name))
    assert blocks["blocks"].tolist() == [0, 1, 2, 3] and blocks["keys"].dtype == dtype
    assert torch.equal(blocks["values"][2].view(torch.uint8), block(2, 1, dtype).values.view(torch.uint8))


def test_only_the_last_run_of_a_growing_history_changes(segments: Segments) -> None:
    history = tokens(2 * RUN_TOKENS + 50)
    runs, sealed = seal_tokens(history)
    longer, _ = seal_tokens(history + tokens(7, seed=1))
    assert [run.num_tokens for run in runs] == [RUN_TOKENS, RUN_TOKENS, 50]
    assert longer[:2] == runs[:2] and longer[2] != runs[2]
    segments.write(sealed.values())
    assert [token_id for run in runs for token_id in open_tokens(segments, run)] == list(history)
    assert seal_tokens(tokens(0)) == ((), {})


def test_a_list_is_a_history_too_and_no_id_is_too_large_in_silence() -> None:
    assert seal_tokens(list(tokens(100)))[0] == seal_tokens(tokens(100))[0]
    with pytest.raises(OverflowError):
        seal_tokens([1 << 31])


@settings(deadline=None)
@given(left=st.lists(st.integers(0, 2), min_size=1), right=st.lists(st.integers(0, 2), min_size=1))
def test_num_shared_counts_the_common_beginning(left: list[int], right: list[int]) -> None:
    from array import array

    count = num_shared(array("i", left), right)
    assert left[:count] == right[:count] and (count == min(len(left), len(right)) or left[count] != right[count])


shapes = st.tuples(*(st.integers(1, 3) for _ in range(6)))


@settings(max_examples=25, deadline=None)
@given(
    shape=shapes,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    held=st.sets(st.integers(0, 70), max_size=12),
    has_hidden=st.booleans(),
    bits=st.none() | st.floats(0, allow_nan=False, allow_infinity=False),
    seed=st.integers(0, 1000),
)
def test_any_snapshot_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    held: set[int],
    has_hidden: bool,
    bits: float | None,
    seed: int,
) -> None:
    mamba, states, inner, layers, groups, width = shape
    generator = torch.Generator().manual_seed(seed)

    def some(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        raw = torch.randint(0, 256, (*sizes, dtype.itemsize), dtype=torch.uint8, generator=generator)
        return raw.view(dtype).squeeze(-1)

    def content() -> BlockContent:
        # Rows of a larger tensor: contiguous, but not at its start.
        both = some(2, layers, 64, groups, width, dtype=dtype)
        return BlockContent(both[0], both[1])

    taken = Snapshot(
        num_tokens=71 * 64,
        ssm=some(mamba, states, inner),
        conv=some(mamba, inner, 3).transpose(1, 2),
        blocks={number: content() for number in held},
        hidden=some(5) if has_hidden else None,
        information_bits=bits,
    )
    segments = Segments(tmp_path_factory.mktemp("segments"))
    packer = Packer()
    checkpoint = packer.pack(taken)
    segments.write(packer.sealed.values())
    assert [run.blocks[0] // 16 for run in checkpoint.block_runs] == sorted({number // 16 for number in held})
    back = Unpacker(segments).unpack(checkpoint)
    assert same_snapshot(back, taken)
    assert (checkpoint.ssm_bytes, checkpoint.conv_bytes) == (back.ssm.nbytes, back.conv.nbytes)
    assert checkpoint.kv_bytes == sum(each.nbytes for each in back.blocks.values())
    again = Packer()
    assert again.pack(back) == checkpoint


def test_runs_that_snapshots_share_are_stored_and_read_once(segments: Segments) -> None:
    packer = Packer()
    first, second = packer.pack(snapshot(16 * 64 + 30)), packer.pack(snapshot(16 * 64 + 60))
    assert first.block_runs == second.block_runs and len(packer.sealed) == 4
    segments.write(packer.sealed.values())
    unpacker = Unpacker(segments)
    left, right = unpacker.unpack(first), unpacker.unpack(second)
    assert left.blocks[16] is right.blocks[16]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_altered_byte_and_no_cut_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    segments = Segments(tmp_path_factory.mktemp("segments"))
    packer = Packer()
    checkpoint = packer.pack(snapshot(100, 1))
    runs, sealed = seal_tokens(tokens(100))
    segments.write([*packer.sealed.values(), *sealed.values()])
    name = data.draw(st.sampled_from([*packer.sealed, *sealed]))
    path = segments.path(name)
    content = bytearray(path.read_bytes())
    offset = data.draw(st.integers(0, len(content) - 1))
    what = data.draw(st.sampled_from(["flip", "cut", "grow", "swap"]))
    if what == "flip":
        content[offset] ^= 1 << data.draw(st.integers(0, 7))
    elif what == "cut":
        del content[offset:]
    elif what == "grow":
        content += content[: offset + 1]
    else:
        content = bytearray(segments.path(next(each for each in packer.sealed if each != name)).read_bytes())
    path.write_bytes(content)
    with pytest.raises(SegmentDamaged, match=name):
        open_tokens(segments, runs[0])
        Unpacker(segments).unpack(checkpoint)


def test_what_is_missing_or_another_kind_is_said(segments: Segments) -> None:
    packer = packed(segments, snapshot(100, 1))
    (run,), sealed = seal_tokens(tokens(100))
    with pytest.raises(SegmentDamaged, match=rf"{run.segment.name}.safetensors is missing"):
        open_tokens(segments, run)
    segments.write(sealed.values())
    with pytest.raises(SegmentDamaged, match="it holds tokens, expected state"):
        segments.read(run.segment, SegmentKind.STATE)
    text = seal(SegmentKind.TOKENS, {"token_ids": RawTensor("I32", (1,), (b"1234",))})
    segments.write([text])
    assert segments.read(text.ref, SegmentKind.TOKENS)["token_ids"].pieces[0] == b"1234"
    assert len(packer.sealed) == 2


def test_what_contradicts_the_manifest_is_refused(segments: Segments) -> None:
    from dataclasses import replace

    packer = Packer()
    checkpoint = packer.pack(snapshot(100, 1))
    (run,), sealed = seal_tokens(tokens(100))
    segments.write([*packer.sealed.values(), *sealed.values()])
    with pytest.raises(SegmentDamaged, match=r"token_ids I32 \[100\], expected 99 token ids"):
        open_tokens(segments, replace(run, num_tokens=99))
    with pytest.raises(SegmentDamaged, match="expected states of"):
        Unpacker(segments).unpack(replace(checkpoint, ssm_bytes=checkpoint.ssm_bytes + 4))
    (blocks,) = checkpoint.block_runs
    for other in ((0,), (0, 2), (0, 1, 2)):
        moved = replace(checkpoint, num_tokens=1000, block_runs=(BlockRun(blocks.segment, other),))
        with pytest.raises(SegmentDamaged, match="expected keys and values of blocks"):
            Unpacker(segments).unpack(moved)
    bad = seal(SegmentKind.STATE, {"ssm": RawTensor("F32", (1,), (b"1234",))})
    segments.write([bad])
    with pytest.raises(SegmentDamaged, match="expected states of"):
        Unpacker(segments).unpack(replace(checkpoint, state=bad.ref))


@settings(max_examples=50, deadline=None)
@given(junk=st.binary(min_size=1, max_size=200))
@example(junk=b"\1" + bytes(7) + b"7")
@example(junk=b"\2" + bytes(7) + b"{}")
@example(junk=b"\x18" + bytes(7) + b'{"__metadata__":"state"} ')
def test_bytes_under_their_own_hash_are_still_no_segment(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    from server.sessions.segments import SealedSegment, SegmentRef

    segments = Segments(tmp_path_factory.getbasetemp() / "junk")
    (tmp_path_factory.getbasetemp() / "junk").mkdir(exist_ok=True)
    made = SealedSegment(SegmentRef(hashlib.sha256(junk).hexdigest(), len(junk)), (junk,))
    path = segments.path(made.ref.name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(junk)
    with pytest.raises(SegmentDamaged, match="no segment"):
        segments.read(made.ref, SegmentKind.STATE)
