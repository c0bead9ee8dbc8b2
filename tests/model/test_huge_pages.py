"""Where weights, keys and values and states lie."""

import ctypes
import itertools
import mmap
from pathlib import Path

import pytest
import torch
from fakes_model import TINY_CONFIG

from model import huge_pages
from model.cache.block_pool import BlockPool
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.huge_pages import HUGE_PAGE_BYTES, zeros
from model.hybrid import CACHE_LINE_BYTES, HybridLM
from model.kernels import REFERENCE


def test_begins_on_a_huge_page_and_is_zero() -> None:
    for shape, dtype in (((3,), torch.int8), ((5, 7), torch.float32), ((2, HUGE_PAGE_BYTES), torch.bfloat16)):
        found = zeros(shape, dtype)
        assert found.shape == shape and found.dtype == dtype and found.is_contiguous()
        assert found.data_ptr() % HUGE_PAGE_BYTES == 0 and not found.any()
        found.fill_(1)
        assert found.float().sum() == found.numel()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says in which pages memory lies")
def test_the_system_is_asked_for_huge_pages() -> None:
    found = zeros((4 * HUGE_PAGE_BYTES,), torch.int8).fill_(1)
    address = found.data_ptr()
    flags = ""
    is_ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first, last = (int(part, 16) for part in head.split("-"))
            is_ours = first <= address < last
        elif is_ours and line.startswith("VmFlags:"):
            flags = line
    assert " hg" in flags, flags


def test_memory_is_had_where_the_system_refuses_the_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    # No advice has this number.
    monkeypatch.setattr(huge_pages, "ADVICE", 9999)
    assert not zeros((10,), torch.float32).any()
    monkeypatch.setattr(huge_pages, "ADVICE", None)
    assert not zeros((10,), torch.float32).any()


def test_the_memory_lives_as_long_as_a_view_of_it() -> None:
    view = zeros((1000, 1000), torch.float32).fill_(7)[500]
    others = [zeros((1000, 1000), torch.float32).fill_(1) for _ in range(3)]
    assert (view == 7).all() and len(others) == 3
    assert ctypes.string_at(view.data_ptr(), 4) == ctypes.string_at(torch.full((1,), 7.0).data_ptr(), 4)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_the_matrices_of_a_model_lie_in_one_piece_each_on_a_cache_line(dtype: Dtype) -> None:
    model = HybridLM(ModelConfig.from_dict(TINY_CONFIG), REFERENCE, dtype)
    places = sorted((matrix.weight.data_ptr(), matrix.weight.nbytes) for matrix in model.matrices())
    assert places[0][0] % HUGE_PAGE_BYTES == 0
    assert all(place % CACHE_LINE_BYTES == 0 for place, _ in places)
    gaps = [after - (place + size) for (place, size), (after, _) in itertools.pairwise(places)]
    assert all(0 <= gap < CACHE_LINE_BYTES for gap in gaps), gaps


def test_pools_lie_in_huge_pages() -> None:
    config = ModelConfig.from_dict(TINY_CONFIG)
    states, blocks = StatePool(config, 2), BlockPool(config, 3, Dtype.BFLOAT16)
    tensors = (states.ssm, states.conv, blocks.keys, blocks.values)
    assert all(tensor.data_ptr() % HUGE_PAGE_BYTES == 0 for tensor in tensors)
    assert mmap.PAGESIZE < HUGE_PAGE_BYTES
