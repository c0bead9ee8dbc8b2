"""Engines behind one interface, each in a process of its own: Fano's model, transformers' Jamba, llama.cpp's library.

All are measured at the same place: token ids go in, the next token comes out, drawn greedily. Nobody's sampler, text
or HTTP is part of it. Imports are inside, so that the process of one engine does not hold the libraries of another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]
FANO, TRANSFORMERS, LLAMA = "fano", "transformers", "llama.cpp"
CHUNK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Side:
    """An engine and the number format it runs in, under the engine's own name for it."""

    engine: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.engine} {self.dtype}"

    @property
    def num_bits(self) -> int:
        """Of a weight, scales of groups left out."""
        return {"float32": 32, "f32": 32, "bfloat16": 16, "bf16": 16, "int8": 8, "q8_0": 8}[self.dtype]


def all_sides() -> list[Side]:
    """Everything that is compared, Fano in every dtype that it lists."""
    from model.config import Dtype

    sides = [Side(FANO, dtype.value) for dtype in Dtype]
    sides += [Side(TRANSFORMERS, dtype) for dtype in ("float32", "bfloat16")]
    return sides + [Side(LLAMA, dtype) for dtype in ("f32", "bf16", "q8_0")]


class Engine(Protocol):
    """``open`` forgets everything and makes room for some streams, of which ``read`` fills the first.

    ``spread`` gives its state to the others, each in memory of its own, as if it had read the same. ``step`` takes a
    token of each and says which come next. ``all_logits`` [tokens, V] are those of a text read anew.
    """

    def open(self, num_streams: int, num_tokens: int) -> None: ...

    def read(self, ids: Sequence[int]) -> int: ...

    def spread(self, num_streams: int) -> None: ...

    def step(self, tokens: Sequence[int]) -> list[int]: ...

    def all_logits(self, ids: Sequence[int]) -> Floats: ...


def open_engine(side: Side, checkpoint: Path, num_threads: int, library: Path | None) -> Engine:
    """The engine on ``num_threads``; ``library`` is where llama.cpp was built."""
    if side.engine == FANO:
        return FanoEngine(checkpoint, side.dtype, num_threads)
    if side.engine == TRANSFORMERS:
        return TransformersEngine(checkpoint, side.dtype, num_threads)
    from bench.llama import LlamaBuild
    from bench.peers.llama_library import LlamaEngine

    assert library is not None, "llama.cpp needs its directory"
    build = LlamaBuild(library)
    return LlamaEngine(build, build.gguf(checkpoint, side.dtype), num_threads)


class FanoEngine:
    """HybridLM with its pools: what an engine's step runs, without the scheduler."""

    def __init__(self, checkpoint: Path, dtype: str, num_threads: int) -> None:
        import torch

        from model.config import Dtype, ModelConfig
        from model.hybrid import HybridLM
        from model.kernels import choose
        from model.weights import load_weights

        torch.set_num_threads(num_threads)
        kernels, _ = choose("cpu", num_threads)
        self.config = ModelConfig.from_pretrained(checkpoint)
        self.model = HybridLM(self.config, kernels, Dtype(dtype))
        load_weights(self.model, checkpoint)

    def open(self, num_streams: int, num_tokens: int) -> None:
        from model.cache.block_pool import BlockPool, BlockTable
        from model.cache.state_pool import StatePool
        from model.policy import BLOCK_TOKENS

        self.states = StatePool(self.config, num_streams)
        self.blocks = BlockPool(self.config, num_streams * -(-num_tokens // BLOCK_TOKENS), self.model.dtype)
        self.slots = [self.states.allocate()]
        self.tables = [BlockTable(self.blocks)]
        self.num_tokens = 0

    def read(self, ids: Sequence[int]) -> int:
        for start in range(0, len(ids), CHUNK_TOKENS):
            is_last = start + CHUNK_TOKENS >= len(ids)
            logits = self._run([ids[start : start + CHUNK_TOKENS]], num_logits=int(is_last), is_decode=False)
        return int(logits[0].argmax())

    def spread(self, num_streams: int) -> None:
        from model.cache.block_pool import BlockTable

        for _ in range(num_streams - len(self.slots)):
            slot, table = self.states.allocate(), BlockTable(self.blocks)
            self.states.copy(self.slots[0], slot)
            table.prepare(0, self.num_tokens)
            for source, target in zip(self.tables[0].blocks, table.blocks, strict=False):
                self.blocks.copy(source, target)
            self.slots.append(slot)
            self.tables.append(table)

    def step(self, tokens: Sequence[int]) -> list[int]:
        logits = self._run([[token] for token in tokens], num_logits=1, is_decode=True)
        chosen: list[int] = logits.numpy().argmax(-1).tolist()
        return chosen

    def all_logits(self, ids: Sequence[int]) -> Floats:
        self.open(1, len(ids))
        chunks = [ids[start : start + CHUNK_TOKENS] for start in range(0, len(ids), CHUNK_TOKENS)]
        return np.concatenate([self._run([c], num_logits=len(c), is_decode=False).float().numpy() for c in chunks])

    def _run(self, chunks: Sequence[Sequence[int]], *, num_logits: int, is_decode: bool) -> "Tensor":
        """One step of the next tokens of the first streams, as many of each."""
        from model.batch import Batch, SequenceChunk

        first, self.num_tokens = self.num_tokens, self.num_tokens + len(chunks[0])
        parts = []
        for chunk, slot, table in zip(chunks, self.slots, self.tables, strict=False):
            table.prepare(first, self.num_tokens)
            place = (chunk, first, slot, table.blocks, self.config.policy)
            parts.append(SequenceChunk(*place, num_logits=num_logits, is_decode=is_decode))
        return self.model(Batch.pack(parts), self.states, self.blocks)


class TransformersEngine:
    """JambaForCausalLM as it comes."""

    def __init__(self, checkpoint: Path, dtype: str, num_threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, logging

        torch.set_num_threads(num_threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()

    def open(self, num_streams: int, num_tokens: int) -> None:
        del num_streams, num_tokens  # its cache grows by itself
        self.cache: Any = None

    def read(self, ids: Sequence[int]) -> int:
        return int(self._run([list(ids)])[0, -1].argmax())

    def spread(self, num_streams: int) -> None:
        import torch

        self.cache.reorder_cache(torch.zeros(num_streams, dtype=torch.long))

    def step(self, tokens: Sequence[int]) -> list[int]:
        chosen: list[int] = self._run([[token] for token in tokens])[:, -1].argmax(-1).tolist()
        return chosen

    def all_logits(self, ids: Sequence[int]) -> Floats:
        self.open(1, len(ids))
        logits: Floats = self._run([list(ids)], num_logits=0)[0].float().numpy()
        return logits

    def _run(self, rows: list[list[int]], num_logits: int = 1) -> "Tensor":
        """Logits of the last ``num_logits`` tokens, of all where it is 0."""
        import torch

        with torch.inference_mode():
            out = self.model(torch.tensor(rows), past_key_values=self.cache, use_cache=True, logits_to_keep=num_logits)
        self.cache = out.past_key_values
        return out.logits
