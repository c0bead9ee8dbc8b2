"""The hybrid language model: token ids and state in, logits and state out."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from model.batch import Batch
from model.cache.block_pool import TORCH_DTYPES, BlockPool
from model.cache.kv_archive import KvArchive
from model.cache.state_pool import StatePool
from model.config import Dtype, LayerKind, ModelConfig
from model.huge_pages import zeros
from model.kernels import Kernels
from model.kernels.selection import ArchivedLayer
from model.layers.attention import SparseAttention
from model.layers.feed_forward import ExpertFeedForward, GatedFeedForward
from model.layers.fetching import FetchingStep
from model.layers.mamba import MambaMixer
from model.layers.matrix import Matrix
from model.layers.parameters import Parameterised
from model.layers.projection import RMSNorm
from model.tiles import PROMPT_LOGPROB_ROWS
from model.whole_step import WholeStep

# Matrices begin on a cache line, so that no register of weights lies across two.
CACHE_LINE_BYTES = 64


class Reading(NamedTuple):
    """What a step brought: ``logits`` [rows, V] float32 of ``batch.logits_rows``; ``hidden`` [prompt rows, D] float32,
    the normed rows of those that are of prompts; ``surprisal`` [prompt tokens] float64, the bits of each one's
    next token, 0 where they are not wanted, None where none are."""

    logits: Tensor
    hidden: Tensor
    surprisal: Tensor | None = None


class HybridLM(Parameterised):
    """Mamba and attention layers on one residual stream, in the layout of transformers' ``JambaForCausalLM``.

    Construction allocates parameters without values (``model.weights.load_weights`` fills them); on the ``meta``
    device it costs nothing. Matrices are held and multiplied in ``dtype``; the residual stream, norms and the
    recurrence are float32. The model keeps no state between calls: everything a sequence remembers is in the pools.
    ``nbytes`` are the bytes of all parameters, a tied one counted once.
    """

    def __init__(
        self, config: ModelConfig, kernels: Kernels, dtype: Dtype = Dtype.FLOAT32, device: str = "cpu"
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.kernels = kernels
        self._whole_step: WholeStep | None = None
        held = TORCH_DTYPES[dtype]
        with torch.device(device):
            self.embedding = Matrix(config.vocab_size, config.hidden_size, held, kernels)
            self.layers = [
                HybridLayer(config, index, kind, kernels, held) for index, kind in enumerate(config.layer_kinds)
            ]
            self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
            # A tied head is the embedding itself, not a copy: the parameter exists once.
            self.head = (
                None if config.tie_word_embeddings else Matrix(config.vocab_size, config.hidden_size, held, kernels)
            )
        if device == "cpu":
            self._gather()
        self.nbytes = sum(tensor.nbytes for tensor in self.parameters())

    def __call__(self, batch: Batch, states: StatePool, blocks: BlockPool) -> Tensor:
        """The logits of :meth:`read`."""
        return self.read(batch, states, blocks).logits

    @torch.inference_mode()
    def read(self, batch: Batch, states: StatePool, blocks: BlockPool) -> Reading:
        """Read the batch's tokens.

        Mutates the pools: the batch's slots hold the states after its tokens, its rows of the block pool their keys
        and values. Nothing else in the pools is touched, and no sequence's result depends on its neighbours.
        """
        if self.kernels.step is not None and self._whole_step is None:
            # At the first step, when the weights are loaded: it holds their addresses.
            self._whole_step = WholeStep.of(self)
        if self._whole_step is None:
            reading = self._read(batch, states, blocks)
            return reading._replace(hidden=reading.hidden[batch.num_decodes :])
        logits, hidden, x = self._whole_step(batch, states, blocks)
        surprisal = None if batch.next_ids is None else self._surprisals(x, batch.next_ids)
        if surprisal is not None:
            surprisal = surprisal[batch.num_decodes :]
        return Reading(logits, hidden[batch.num_decodes :], surprisal)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of the workspace that is held between steps."""
        return 0 if self._whole_step is None else self._whole_step.workspace_bytes

    def pack(self) -> None:
        """Lay all matrices out as the native kernels read them, once they are loaded. Idempotent."""
        for matrix in self.matrices():
            matrix.pack()

    def matrices(self) -> Iterator[Matrix]:
        """All matrices, each once."""
        waiting: list[Parameterised] = [self]
        while waiting:
            part = waiting.pop()
            waiting += [each for _, each in part.parts()]
            if isinstance(part, Matrix):
                yield part

    def _gather(self) -> None:
        """Give all matrices one piece of memory."""
        matrices = list(self.matrices())
        sizes = [-(-matrix.weight.nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES for matrix in matrices]
        memory = zeros((sum(sizes),), torch.int8)
        start = 0
        for matrix, size in zip(matrices, sizes, strict=True):
            matrix.move_to(memory[start : start + matrix.weight.nbytes])
            start += size

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [rows, V] float32 of normed rows ``hidden`` [rows, D] float32."""
        return (self.embedding if self.head is None else self.head)(hidden)

    @torch.inference_mode()
    def surprisal(self, hidden: Tensor, next_ids: Tensor) -> Tensor:
        """Bits [rows] float64 that ``next_ids`` [rows] tell after the normed rows ``hidden`` [rows, D] float32."""
        logits = self.logits(hidden)
        told = logits.gather(1, next_ids[:, None])[:, 0]
        return (logits.logsumexp(1) - told).double() / math.log(2)

    def _read(self, batch: Batch, states: StatePool, blocks: BlockPool) -> Reading:
        """All layers, one after another, over all tokens at once.

        Only here does torch use more than one thread: its threads spin for a while after each operation, on the core
        that a decode step wants.
        """
        torch.set_num_threads(self.kernels.num_threads)
        try:
            return self._through_layers(batch, states, blocks)
        finally:
            torch.set_num_threads(1)

    def _through_layers(self, batch: Batch, states: StatePool, blocks: BlockPool) -> Reading:
        x = self.embedding.rows(batch.input_ids)
        archive = blocks.archive if batch.archived else None
        fetching = FetchingStep(batch, blocks.fetched) if archive is not None and blocks.fetched is not None else None
        num_mamba = num_attention = 0
        for layer in self.layers:
            if isinstance(layer.mixer, MambaMixer):
                memory = (states.ssm[num_mamba], states.conv[num_mamba])
                num_mamba += 1
            else:
                memory = (blocks.keys[num_attention], blocks.values[num_attention])
                num_attention += 1
            x = layer(x, memory, batch, archive, fetching)
        rows = self.final_norm(x[batch.logits_rows])
        surprisal = None if batch.next_ids is None else self._surprisals(x, batch.next_ids)
        reading = Reading(self.logits(rows), rows, surprisal)
        if fetching is not None:
            # The device has been told everything: what left the windows arrives while it is still at it.
            fetching.end()
        return reading

    def _surprisals(self, x: Tensor, next_ids: Tensor) -> Tensor:
        """Bits [T] float64 of ``next_ids`` [T] after the rows ``x`` [T, D]; a tile of logits at a time."""
        bits = torch.zeros(len(next_ids), dtype=torch.float64, device=x.device)
        wanted = torch.nonzero(next_ids >= 0)[:, 0]
        for start in range(0, len(wanted), PROMPT_LOGPROB_ROWS):
            rows = wanted[start : start + PROMPT_LOGPROB_ROWS]
            bits[rows] = self.surprisal(self.final_norm(x[rows]), next_ids[rows])
        return bits


class HybridLayer(Parameterised):
    """Norm, mixer, residual; norm, feed-forward, residual."""

    def __init__(self, config: ModelConfig, index: int, kind: LayerKind, kernels: Kernels, dtype: torch.dtype) -> None:
        self.mixer_norm = RMSNorm(config.hidden_size, config.norm_eps)
        num_before = config.layer_kinds[:index].count(LayerKind.ATTENTION)
        self.mixer = (
            MambaMixer(config, kernels, dtype)
            if kind is LayerKind.MAMBA
            else SparseAttention(config, kernels, dtype, num_before)
        )
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn = (ExpertFeedForward if config.has_experts(index) else GatedFeedForward)(config, kernels, dtype)

    def __call__(
        self,
        x: Tensor,
        memory: tuple[Tensor, Tensor],
        batch: Batch,
        archive: KvArchive | None = None,
        fetching: FetchingStep | None = None,
    ) -> Tensor:
        """[T, D] float32 -> the same ``x``, mutated. ``memory`` is this layer's part of the state or block pool;
        ``archive`` is there where somebody reads under that policy, ``fetching`` where that is on a device."""
        normed = self.mixer_norm(x)
        if isinstance(self.mixer, MambaMixer) or archive is None:
            x += self.mixer(normed, *memory, batch)
        else:
            layer = ArchivedLayer(
                *archive.keys_values,
                archive.summaries,
                self.mixer.index,
                batch.archived,
                batch.select_from,
                batch.indexes,
                archive.plan,
            )
            x += self.mixer(normed, *memory, batch, layer, fetching)
        x += self.ffn(self.ffn_norm(x))
        return x
