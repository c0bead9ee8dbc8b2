"""An attention archive on the host beside a device, filled without reading a text."""

import torch

from bench.gpu_limits import Case, num_archived
from model.cache.fetched_blocks import FetchedBlocks
from model.cache.kv_archive import ArchivedBlock, KvArchive
from model.hybrid import HybridLM
from model.policy import AttentionPolicy, PolicyName

# For a short run, in whose lengths the policy that is measured would select nothing.
NARROW = AttentionPolicy(PolicyName.ARCHIVE, 64, 64, 2)
# Numbers that repeat after so many: a prime, so that no two blocks are alike.
PERIOD = 1_000_003


def fetched_of(model: HybridLM, case: Case, device: str) -> tuple[FetchedBlocks | None, list[ArchivedBlock]]:
    """Room on the device for what the case selects, as a plan has it, over an archive of the case's length, and its
    blocks, which are there as long as they are held; None where nothing is selected."""
    count = num_archived(case)
    if not count:
        return None, []
    each = sum(model.config.archive_bytes_per_block(model.dtype))
    archive = KvArchive(model.config, model.dtype, count * each)
    noise = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)).mul_(0.1).to(archive.summaries.dtype)
    for held in (archive.keys_values[0], archive.summaries):
        for part in held.flatten().split(PERIOD):
            part.copy_(noise[: len(part)])
    blocks = archive.allocate(count)
    assert [block.number for block in blocks] == list(range(count)), "the archive was not empty"
    return FetchedBlocks(model.config, model.dtype, case.batch * case.policy.select, archive, device), blocks
