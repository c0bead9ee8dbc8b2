"""Small random checkpoints and a way to read tokens through a model without an engine."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import JambaConfig, JambaForCausalLM

from model.batch import Batch, SequenceChunk
from model.cache.block_pool import BlockPool, BlockTable
from model.cache.fetched_blocks import FetchedBlocks
from model.cache.kv_archive import KvArchive
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.hybrid import HybridLM
from model.index_plan import IndexPlan
from model.kernels import REFERENCE, Choose, Kernels
from model.kernels.native import InstructionSet, load_native
from model.policy import AttentionPolicy
from model.weights import load_weights

VOCAB_SIZE = 97
ARCHIVE_BYTES = 1 << 22
FETCHING = "fetching"

# Every kind of checkpoint the layout allows for, as what it has beyond the common geometry.
CHECKPOINT_KINDS: dict[str, dict[str, object]] = {
    "dense": {"num_experts": 1, "num_key_value_heads": 2},
    "experts": {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    "mqa": {"num_experts": 1, "num_key_value_heads": 1, "mamba_conv_bias": False},
    "tied": {"num_experts": 1, "num_key_value_heads": 4, "tie_word_embeddings": True, "mamba_proj_bias": True},
}


# A config.json as small as the layout allows.
TINY_CONFIG: dict[str, object] = {
    "model_type": "jamba",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_state": 4,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": 2,
    "rms_norm_eps": 1e-6,
}


def make_checkpoint(kind: str, directory: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> JambaForCausalLM:
    """Save a random checkpoint and return transformers' model of it.

    The bias of the time step is lowered to -5 as trained models have it: with the initial 0 the state forgets
    within a few tokens and a lost state would go unnoticed. Other weights are widened so that logits are of order 1.
    """
    torch.manual_seed(seed)
    config = JambaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        attn_layer_period=4,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_dt_rank="auto",
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        **CHECKPOINT_KINDS[kind],
    )
    reference = JambaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if name.endswith("dt_proj.bias"):
                weight.fill_(-5.0)
            elif name.endswith(("layernorm.weight", ".bias", ".D")):
                weight.add_(0.1 * torch.randn_like(weight))
    reference.to(dtype).save_pretrained(directory)
    return reference


def load(directory: Path, dtype: Dtype = Dtype.FLOAT32, kernels: Kernels = REFERENCE, device: str = "cpu") -> HybridLM:
    """The checkpoint in ``directory`` as our model."""
    model = HybridLM(ModelConfig.from_pretrained(directory), kernels, dtype, device)
    load_weights(model, directory)
    return model


def random_ids(num_tokens: int, seed: int) -> list[int]:
    """Token ids that depend on the seed alone."""
    return torch.randint(0, VOCAB_SIZE, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def fetching(choose: Choose = REFERENCE.choose) -> Kernels:
    """The reference twins as a device would run them: what is selected is fetched, although the host attends."""
    return replace(REFERENCE, name=FETCHING, choose=choose)


class Reader:
    """Pools beside a model, on its device, and sequences in them that are read chunk by chunk.

    Where what is selected has to be fetched, there is room for ``num_fetched`` blocks of it.
    """

    def __init__(
        self,
        model: HybridLM,
        num_slots: int = 4,
        num_blocks: int = 32,
        num_fetched: int = 16,
        plan: IndexPlan | None = None,
    ) -> None:
        self.model = model
        self.device = str(model.embedding.weight.device)
        self.states = StatePool(model.config, num_slots, self.device)
        self.archive = KvArchive(model.config, model.dtype, ARCHIVE_BYTES, plan=plan)
        self.fetched: FetchedBlocks | None = None
        if self.device != "cpu" or model.kernels.name == FETCHING:
            self.fetched = FetchedBlocks(model.config, model.dtype, num_fetched, self.archive, self.device)
        self.blocks = BlockPool(model.config, num_blocks, model.dtype, self.device, self.archive, self.fetched)

    def open(self, policy: AttentionPolicy | None = None, select_from: int = 0) -> "OpenSequence":
        """A fresh sequence under ``policy``, the checkpoint's own where it is None."""
        return OpenSequence(self, self.model.config.policy if policy is None else policy, select_from)

    def step(self, parts: Sequence[tuple["OpenSequence", Sequence[int]]]) -> list[Tensor]:
        """One step over the next tokens of several sequences; the logits of all their tokens, per sequence."""
        decodes = all(len(ids) == 1 for _, ids in parts)
        chunks = [sequence.chunk(ids, decodes) for sequence, ids in parts]
        logits = self.model(Batch.pack(chunks, self.device), self.states, self.blocks)
        return list(logits.split([len(ids) for _, ids in parts]))


class OpenSequence:
    """A state slot and a block table, and how many tokens they hold."""

    def __init__(self, reader: Reader, policy: AttentionPolicy, select_from: int = 0) -> None:
        self.reader, self.policy, self.select_from = reader, policy, select_from
        self.slot = reader.states.allocate()
        self.table = BlockTable(reader.blocks)
        self.num_tokens = 0

    def chunk(self, ids: Sequence[int], is_decode: bool | None = None) -> SequenceChunk:
        """The next ``ids`` as a chunk with logits for every token; counts them as read. One alone is a decode."""
        is_decode = len(ids) == 1 if is_decode is None else is_decode
        first = self.num_tokens
        self.table.release_hidden(self.policy, first)
        self.num_tokens += len(ids)
        self.table.prepare(first, self.num_tokens)
        leaving = self.table.leave(self.policy, self.num_tokens)
        indexes = self.table.archive.indexes(self.policy, self.num_tokens, self.select_from)
        archived = self.table.archive.numbers, self.select_from, leaving, indexes
        return SequenceChunk(
            ids, first, self.slot, self.table.blocks, self.policy, len(ids), is_decode, None, *archived
        )

    def read(self, ids: Sequence[int], splits: Sequence[int] = ()) -> Tensor:
        """Logits of all ``ids``, read in chunks that end at ``splits`` and at the end."""
        borders = [0, *sorted({split for split in splits if 0 < split < len(ids)}), len(ids)]
        parts = [ids[start:end] for start, end in pairwise(borders)]
        return torch.cat([self.reader.step([(self, part)])[0] for part in parts])

    def memory(self) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of the scan state, the convolution state and the keys and values that are still held."""
        states, blocks = self.reader.states, self.reader.blocks
        held = [block for block in self.table.blocks if block >= 0]
        kv = torch.stack((blocks.keys[:, held], blocks.values[:, held])).float()
        return states.ssm[:, self.slot].clone(), states.conv[:, self.slot].clone(), kv


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference in units of the standard deviation of ``expected``: the logit scale of law 1."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.double().std())


def kernels_at(level: InstructionSet, num_threads: int = 1) -> Kernels:
    """The native kernels at one instruction set; the test is skipped where this CPU lacks it."""
    try:
        kernels, reason = load_native(num_threads, level)
    except ValueError as error:
        pytest.skip(str(error))
    assert kernels is not None, reason
    return kernels
