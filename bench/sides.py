"""Two engines on the same random weights behind one interface: Fano's model and transformers' Jamba."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHUNK_TOKENS = 512

# 27.6 million parameters; the second is for a check of correctness in seconds.
SMALL = {
    "vocab_size": 16384,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_layer_period": 4,
    "attn_layer_offset": 1,
}


class Side(Protocol):
    """One sequence at a time: ``start`` forgets everything, ``read`` returns the logits [V] after the last token."""

    name: str

    def start(self, num_tokens: int) -> None: ...

    def read(self, ids: list[int]) -> Tensor: ...


class TransformersSide:
    """JambaForCausalLM as it comes."""

    def __init__(self, checkpoint: Path, dtype: str) -> None:
        from transformers import AutoModelForCausalLM, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.name = f"transformers {dtype}"
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=DTYPES[dtype]).eval()
        self.start(0)

    def start(self, num_tokens: int) -> None:
        del num_tokens  # its cache grows by itself
        self.cache = None

    @torch.inference_mode()
    def read(self, ids: list[int]) -> Tensor:
        out = self.model(torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return out.logits[0, -1].float()


class FanoSide:
    """HybridLM with its pools, read in chunks as the engine does."""

    def __init__(self, checkpoint: Path, dtype: str, num_threads: int) -> None:
        from model.config import Dtype, ModelConfig
        from model.hybrid import HybridLM
        from model.kernels import choose
        from model.weights import load_weights

        kernels, self.kernels_reason = choose("cpu", num_threads)
        self.name = f"fano {dtype}"
        self.config = ModelConfig.from_pretrained(checkpoint)
        self.model = HybridLM(self.config, kernels, Dtype(dtype))
        load_weights(self.model, checkpoint)

    def start(self, num_tokens: int) -> None:
        from model.cache.block_pool import BlockPool, BlockTable
        from model.cache.state_pool import StatePool
        from model.policy import BLOCK_TOKENS

        self.states = StatePool(self.config, 1)
        self.blocks = BlockPool(self.config, -(-num_tokens // BLOCK_TOKENS), self.model.dtype)
        self.slot, self.table, self.num_tokens = self.states.allocate(), BlockTable(self.blocks), 0

    def read(self, ids: list[int]) -> Tensor:
        # A single token is one that was drawn, as the benchmarks use it.
        from model.batch import Batch, SequenceChunk

        for start in range(0, len(ids), CHUNK_TOKENS):
            chunk = ids[start : start + CHUNK_TOKENS]
            first, self.num_tokens = self.num_tokens, self.num_tokens + len(chunk)
            self.table.prepare(first, self.num_tokens)
            is_last = start + len(chunk) == len(ids)
            place = (chunk, first, self.slot, self.table.blocks, self.config.policy)
            part = SequenceChunk(*place, num_logits=int(is_last), is_decode=len(ids) == 1)
            logits = self.model(Batch.pack([part]), self.states, self.blocks)
        return logits[0]


def open_side(engine: str, dtype: str, checkpoint: Path, num_threads: int) -> Side:
    """The engine called ``engine``: ``fano`` or ``transformers``."""
    if engine == "fano":
        return FanoSide(checkpoint, dtype, num_threads)
    return TransformersSide(checkpoint, dtype)


def make_checkpoint(directory: Path, geometry: dict[str, int], seed: int) -> int:
    """Save random weights in ``directory`` and return their number.

    The bias of the time step is -5 as trained models have it, so that the state matters to the logits.
    """
    from transformers import JambaConfig, JambaForCausalLM

    torch.manual_seed(seed)
    config = JambaConfig(
        num_experts=1,
        num_experts_per_tok=1,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank="auto",
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **geometry,
    )
    model = JambaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("dt_proj.bias"):
                weight.fill_(-5.0)
    model.save_pretrained(directory)
    return sum(weight.numel() for weight in model.parameters())
