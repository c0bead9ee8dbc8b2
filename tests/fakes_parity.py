"""What the suites of the Triton kernels share: the device, and tiles made small where they are interpreted."""

import functools
import os

import pytest
import torch
from fakes_model import TINY_CONFIG

from model.cache.block_pool import BlockPool
from model.cache.fetched_blocks import FetchedBlocks
from model.cache.kv_archive import KvArchive
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.hybrid import HybridLM
from model.kernels.triton import attention, loading, parity, tables

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TILE = 8 if INTERPRETED else tables.TILE_TOKENS
# Of the largest value of the float64 result.
TOLERANCE = 1e-5
BF16_TOLERANCE = 2.0**-6  # Triton's interpreter cuts off where a GPU rounds to nearest.


@pytest.fixture(scope="module", autouse=True)
def small_tiles():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "TILE_TOKENS", TILE)
        if INTERPRETED:
            # Registers are no matter there, and few programs are quicker than many.
            patch.setattr(attention, "TILE_ROWS", {2: 64, 4: 64})
            patch.setattr(parity, "SPANS", [(0, 1), (330, 1), (63, 3), (380, 5)])
        yield


@functools.cache
def triton_kernels():
    kernels, reason = loading.load_triton(DEVICE, 1)
    assert kernels is not None, reason
    assert kernels.name == "triton-interpreted" or kernels.name.startswith("triton-sm")
    return kernels


def assert_close(found, expected, tolerance=TOLERANCE):
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * scale)


CONFIG = ModelConfig.from_dict(TINY_CONFIG | {"num_hidden_layers": 3})


def model_of(kernels, fetched=None):
    """A small model with kernels and pools, and where ``fetched`` an archive of whose blocks so many are fetched."""
    model = HybridLM(CONFIG, kernels, Dtype.FLOAT32, DEVICE)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        if name.endswith(".a"):
            weight.copy_(-torch.exp(weight))
        elif "norm" in name:
            weight.add_(1)
    archive = room = None
    if fetched is not None:
        archive = KvArchive(CONFIG, Dtype.FLOAT32, 1 << 20)
        room = FetchedBlocks(CONFIG, Dtype.FLOAT32, fetched, archive, DEVICE) if fetched else None
    return model, StatePool(CONFIG, 5, DEVICE), BlockPool(CONFIG, 12, Dtype.FLOAT32, DEVICE, archive, room)
