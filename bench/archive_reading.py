"""A long text under ``window`` with every key kept, and questions after it under an attention that a bench may choose.

Text is read by the kernels of the product; a question runs through its layers with another attention put in their
place, in plain torch. So what blocks are found, and what they are worth, can be measured for ways of choosing them that
no kernel has.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.block_summaries import COMBINED, Summary
from model.batch import Batch, SequenceChunk
from model.cache.block_pool import BlockPool
from model.cache.state_pool import StatePool
from model.config import Dtype, EngineConfig, ModelConfig
from model.engine.loader import choose_dtype, load_engine
from model.engine.request import GenerationRequest, RequestUsage, SamplingParams
from model.hybrid import HybridLM
from model.kernels import Kernels, choose
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.weights import load_weights

CHUNK_TOKENS = 512
TEXT, FORK = 0, 1

# Of a layer (0 is the first that attends), queries [T, H, E] scaled, keys and values [L, G, E] up to the last token:
# mixed values [T, H, E]. The tokens stand at the last T positions.
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class LongReading:
    """One text of at most ``max_tokens`` tokens, its questions and answers included."""

    def __init__(self, checkpoint: Path, max_tokens: int, num_threads: int = 1) -> None:
        kernels, self.kernels_reason = choose("cpu", num_threads)
        self.config = ModelConfig.from_pretrained(checkpoint)
        self.dtype: Dtype = choose_dtype("cpu")[0]
        self._states = StatePool(self.config, 2)
        self._blocks = BlockPool(self.config, -(-max_tokens // BLOCK_TOKENS), self.dtype)
        self._table = array("q", range(self._blocks.num_blocks))
        self._layers = {keys.data_ptr(): layer for layer, keys in enumerate(self._blocks.keys)}
        self._reader = self._load(checkpoint, kernels)
        # Without the whole step in one call the layers ask for each kernel by itself.
        self._asker = self._load(checkpoint, replace(kernels, attend=self._attend, step=None))
        self._attention: Attention | None = None
        self._end = 0
        self.num_tokens = 0

    def start(self) -> None:
        """Forget the text."""
        self._states.zero(TEXT)
        self.num_tokens = 0

    def read(self, ids: Sequence[int], policy: AttentionPolicy) -> None:
        """Go on with the text."""
        for start in range(0, len(ids), CHUNK_TOKENS):
            chunk = ids[start : start + CHUNK_TOKENS]
            self._run(self._reader, chunk, self.num_tokens, TEXT, policy, num_logits=0)
            self.num_tokens += len(chunk)

    def keys(self, layer: int) -> Tensor:
        """[L, G, E] of the text, in the dtype they are held in. A view."""
        return self._blocks.keys[layer].flatten(0, 1)[: self.num_tokens]

    def ask(self, ids: Sequence[int], way: Attention | AttentionPolicy) -> Tensor:
        """The logits [V] after the text and ``ids``; the text stays as it is."""
        self._states.ssm[:, FORK] = self._states.ssm[:, TEXT]
        self._states.conv[:, FORK] = self._states.conv[:, TEXT]
        self._end = self.num_tokens
        return self._go_on(ids, way)

    def answer(
        self, ids: Sequence[int], way: Attention | AttentionPolicy, max_tokens: int, eos_ids: frozenset[int]
    ) -> list[int]:
        """The greedy continuation, without its end."""
        drawn: list[int] = []
        logits = self.ask(ids, way)
        while len(drawn) < max_tokens and (token := int(logits.argmax())) not in eos_ids:
            drawn.append(token)
            logits = self._go_on([token], way)
        return drawn

    def _go_on(self, ids: Sequence[int], way: Attention | AttentionPolicy) -> Tensor:
        first, self._end = self._end, self._end + len(ids)
        if isinstance(way, AttentionPolicy):
            return self._run(self._reader, ids, first, FORK, way, num_logits=1)[-1]
        self._attention = way
        return self._run(self._asker, ids, first, FORK, AttentionPolicy(PolicyName.FULL), num_logits=1)[-1]

    def _run(
        self, model: HybridLM, ids: Sequence[int], first: int, slot: int, policy: AttentionPolicy, num_logits: int
    ) -> Tensor:
        chunk = SequenceChunk(ids, first, slot, self._table, policy, num_logits)
        return model(Batch.pack([chunk]), self._states, self._blocks)

    def _attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        query_start: Tensor,
        first_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        policies: Sequence[AttentionPolicy],
    ) -> Tensor:
        assert self._attention is not None and len(policies) == 1, "one sequence is asked at a time"
        del query_start, block_tables  # its blocks lie one after another
        end = first_positions[0] + queries.shape[0]
        held = [pool.flatten(0, 1)[:end] for pool in (keys, values)]
        mixed = self._attention(self._layers[keys.data_ptr()], queries.float() * queries.shape[-1] ** -0.5, *held)
        return mixed.to(queries.dtype)

    def _load(self, checkpoint: Path, kernels: Kernels) -> HybridLM:
        model = HybridLM(self.config, kernels, self.dtype)
        load_weights(model, checkpoint)
        if kernels.product is not None:
            model.pack()
        return model


class EngineReading:
    """The same by the product's engine under one policy: what is asked after a text selects, where the policy does."""

    def __init__(self, checkpoint: Path, max_tokens: int, policy: AttentionPolicy, num_threads: int = 1) -> None:
        config = EngineConfig(
            num_slots=1,
            max_context_tokens=max_tokens,
            dtype=choose_dtype("cpu")[0],
            policy=policy,
            num_threads=num_threads,
        )
        self._engine, _ = load_engine(checkpoint, config)
        self._text = array("i")
        self._num_requests = 0

    def start(self, ids: Sequence[int]) -> None:
        """Read another text."""
        self._text = array("i", ids)
        self._generate(self._text, 0)

    def answer(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """The greedy continuation of the text and ``ids``, without its end."""
        drawn, usage = self._generate(self._text + array("i", ids), max_tokens)
        assert usage.num_cached_tokens >= len(self._text) - BLOCK_TOKENS, "the text was read again"
        return [token for token in drawn if token not in self._engine.tokenizer.eos_ids]

    def _generate(self, ids: "array[int]", max_tokens: int) -> tuple[list[int], RequestUsage]:
        self._num_requests += 1
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        self._engine.submit(
            GenerationRequest(
                str(self._num_requests), ids, sampling, is_background=not max_tokens, select_from=len(self._text)
            )
        )
        drawn: list[int] = []
        usage: RequestUsage | None = None
        while self._engine.has_work():
            for event in self._engine.step():
                assert event.error is None, event.error
                drawn += event.token_ids
                usage = event.usage or usage
        assert usage is not None, "a request ends with its bill"
        return drawn, usage


def by_group(queries: Tensor, num_groups: int) -> Tensor:
    """[T, H, E] -> [G, T, H/G, E]: query heads beside the key head they read."""
    num_tokens, num_heads, width = queries.shape
    return queries.view(num_tokens, num_groups, num_heads // num_groups, width).transpose(0, 1)


def attend_fully(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Every earlier token, exactly: mixed values [T, H, E], and the weights [G, T, H/G, L] they were mixed by."""
    num_groups = keys.shape[1]
    weights = torch.einsum("gthe,lge->gthl", by_group(queries, num_groups), keys.float())
    num_tokens, length = queries.shape[0], keys.shape[0]
    late = torch.arange(length) > torch.arange(length - num_tokens, length)[:, None]
    weights = weights.masked_fill_(late[None, :, None], float("-inf")).softmax(-1)
    mixed = torch.einsum("gthl,lge->tghe", weights, values.float())
    return mixed.flatten(1, 2), weights


def attend_chosen(
    queries: Tensor, keys: Tensor, values: Tensor, policy: AttentionPolicy, chosen: Tensor | None
) -> Tensor:
    """What ``policy`` shows under ``window``, and of the blocks before it those that are ``chosen``.

    ``chosen`` [G, T, blocks] bool, of all blocks wholly before some token's window; those a token's window or sinks
    show anyway change nothing. Mixed values [T, H, E].
    """
    num_tokens, length = queries.shape[0], keys.shape[0]
    first = length - num_tokens
    low = min(policy.window_start(first), first)
    position = torch.arange(first, length)[:, None]
    start = torch.div(position - policy.window + 1, BLOCK_TOKENS, rounding_mode="floor").clamp_(0) * BLOCK_TOKENS
    kept = [torch.arange(min(policy.sinks, low)), torch.arange(low, length)]
    rows = by_group(queries, keys.shape[1])
    mixed = torch.empty((num_tokens, *rows.shape[0::2], rows.shape[-1]))
    for group, each in enumerate(rows):
        places = list(kept)
        if chosen is not None and chosen.shape[-1]:
            blocks = torch.nonzero(chosen[group].any(0))[:, 0]
            blocks = blocks[(blocks * BLOCK_TOKENS >= policy.sinks) & ((blocks + 1) * BLOCK_TOKENS <= low)]
            places.append((blocks[:, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten())
        key = torch.cat(places)
        seen = (key <= position) & ((key < policy.sinks) | (key >= start))
        if chosen is not None and chosen.shape[-1]:
            block = (key // BLOCK_TOKENS).clamp(max=chosen.shape[-1] - 1)
            is_block = key // BLOCK_TOKENS < chosen.shape[-1]
            seen |= chosen[group][:, block] & is_block & (key <= position)
        scores = torch.einsum("the,le->thl", each, keys[key, group].float())
        weights = scores.masked_fill_(~seen[:, None], float("-inf")).softmax(-1)
        mixed[:, group] = torch.einsum("thl,le->the", weights, values[key, group].float())
    return mixed.flatten(1, 2)


class ArchiveAttention:
    """Policy ``archive`` in plain torch: sinks, window, and the ``select`` best blocks before it for each token and key
    head, by what their summaries say of its own queries."""

    def __init__(self, summary: Summary, combined: str, policy: AttentionPolicy, select: int) -> None:
        self._summary = summary
        self._combine = COMBINED[combined]
        self._policy = policy
        self._select = select
        self._kept: dict[int, Tensor] = {}
        self.chosen: dict[int, Tensor] = {}

    def start(self) -> None:
        """Another text."""
        self._kept.clear()

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        num_tokens, length = queries.shape[0], keys.shape[0]
        first = length - num_tokens
        if layer not in self._kept:
            blocks = keys[: first // BLOCK_TOKENS * BLOCK_TOKENS].unflatten(0, (-1, BLOCK_TOKENS)).transpose(1, 2)
            self._kept[layer] = torch.stack([self._summary.of(each) for each in blocks.transpose(0, 1)])
        starts = torch.tensor([self._policy.window_start(position) for position in range(first, length)])
        num_blocks = int(starts[-1]) // BLOCK_TOKENS
        assert num_blocks <= self._kept[layer].shape[1], "question and answer are longer than the window"
        rows = by_group(queries, keys.shape[1])
        said = [
            self._summary.score(each, kept[:num_blocks]) for each, kept in zip(rows, self._kept[layer], strict=True)
        ]
        scores = self._combine(torch.stack(said))
        block = torch.arange(num_blocks)
        is_before = (block >= self._policy.sinks // BLOCK_TOKENS) & ((block + 1) * BLOCK_TOKENS <= starts[:, None])
        scores = scores.masked_fill(~is_before, float("-inf"))
        # A stable order, so that ties go to the earlier block.
        best = scores.argsort(dim=-1, descending=True, stable=True)[..., : self._select]
        chosen = torch.zeros(scores.shape, dtype=torch.bool).scatter_(-1, best, True) & is_before
        if num_tokens > 1:  # of the question, not of what is drawn after it
            self.chosen[layer] = chosen
        return attend_chosen(queries, keys, values, self._policy, chosen)

    def found(self, blocks: range) -> bool:
        """Whether one of the blocks was chosen for the last token that was asked for."""
        return any(bool(chosen[:, -1, blocks.start : blocks.stop].any()) for chosen in self.chosen.values())
