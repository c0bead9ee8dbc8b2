"""The bill of a request before it runs, from the configurations alone: ``POST /v1/plan``. No torch.

What it says a request will hold is what ``usage.fano.resident_bytes`` and, of keys and values,
``usage.fano.archive_bytes`` say when that request has run to its last token: the most at the end of any of its choices,
what they share counted once.
"""

from dataclasses import dataclass

from model.cache.plan import MemoryPlan, num_archived_blocks
from model.config import EngineConfig, ModelConfig
from model.engine.admission import Admission
from model.engine.request import GenerationRequest
from model.engine.stats import EngineStats
from model.errors import ModelError, NeverFits
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a request will hold on the device, and in the archive on the host.

    ``peak_kv_bytes`` is the most while its prompt is read, which is what must be free; ``fits_now`` is whether it would
    begin at once and find room in the archive to its end, ``refusal`` why it never can. ``lacking`` is the pool with
    too little room, now or ever: ``state``, ``kv`` or ``kv_archive``.
    """

    num_prompt_tokens: int
    max_tokens: int
    num_choices: int
    policy: AttentionPolicy
    kv_bytes: int
    ssm_state_bytes: int
    conv_state_bytes: int
    kv_archive_bytes: int
    kv_summary_bytes: int
    peak_kv_bytes: int
    fits_now: bool
    lacking: str | None
    refusal: ModelError | None

    @property
    def total_bytes(self) -> int:
        """All that it holds on the device at its end."""
        return self.kv_bytes + self.ssm_state_bytes + self.conv_state_bytes


class Forecaster:
    """Knows the sizes of one engine's pools. Safe from any thread."""

    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        plan = self.plan = MemoryPlan.of(model, engine)
        self.policy = engine.policy_for(model)
        self.max_context_tokens = engine.max_context_tokens
        self._model = model
        self._chunk_tokens = engine.prefill_chunk_tokens
        self._dtype, self._index = engine.dtype, engine.archive_index
        self._archived_bytes, self._summary_bytes = model.archive_bytes_per_block(engine.dtype)
        self._admission = Admission(
            model.vocab_size,
            engine.max_context_tokens,
            plan.num_slots,
            plan.num_blocks,
            engine.prefill_chunk_tokens,
            plan.num_archive_blocks,
            plan.bytes_per_archived_block,
        )

    def forecast(self, request: GenerationRequest, stats: EngineStats, num_archived_found: int = 0) -> Forecast:
        """The bill of ``request`` beside what ``stats`` say is held now. Nothing is reserved.

        What checkpoints hold counts as room, but in the archive not that of named sessions which are not saved, nor
        what was promised to others there. ``num_archived_found`` of its blocks the request would find there, held by
        such a session or by another request.
        """
        policy, num_choices = request.policy or self.policy, request.num_choices
        num_prompt_tokens, max_tokens = len(request.prompt_ids), request.sampling.max_tokens
        num_blocks = blocks_at_end(policy, num_prompt_tokens, max_tokens, num_choices)
        resident = policy.max_resident_tokens(num_prompt_tokens + max_tokens, self._chunk_tokens)
        peak_blocks = num_choices * -(-resident // BLOCK_TOKENS)
        num_archived = sum(num_archived_blocks(policy, num_prompt_tokens, max_tokens, num_choices))
        blocks, archive = stats.blocks, stats.archive_blocks
        kept = stats.num_archive_blocks_anchored + stats.num_archive_blocks_promised
        needs = (
            ("state", num_choices, self.plan.num_slots - stats.slots.used),
            ("kv", peak_blocks, blocks.free + blocks.cached),
            ("kv_archive", num_archived - num_archived_found, archive.free + archive.cached - kept),
        )
        lacking = next((pool for pool, needed, room in needs if needed > max(0, room)), None)
        refusal = self._refusal(request, policy)
        return Forecast(
            num_prompt_tokens=num_prompt_tokens,
            max_tokens=max_tokens,
            num_choices=num_choices,
            policy=policy,
            kv_bytes=num_blocks * self.plan.bytes_per_block,
            ssm_state_bytes=num_choices * self._model.ssm_state_bytes,
            conv_state_bytes=num_choices * self._model.conv_state_bytes,
            kv_archive_bytes=num_archived * self._archived_bytes,
            kv_summary_bytes=num_archived * self._summary_bytes + self._index_bytes(num_archived),
            peak_kv_bytes=peak_blocks * self.plan.bytes_per_block,
            fits_now=refusal is None and lacking is None and stats.num_waiting == 0,
            lacking=refusal.pool if isinstance(refusal, NeverFits) else None if refusal else lacking,
            refusal=refusal,
        )

    def _index_bytes(self, num_archived: int) -> int:
        """Most bytes of the indexes over so many blocks."""
        if self._index is None:
            return 0
        return num_archived // self._index.num_blocks * self._model.index_bytes(self._dtype, self._index)

    def _refusal(self, request: GenerationRequest, policy: AttentionPolicy) -> ModelError | None:
        try:
            self._admission.check(request, policy)
        except ModelError as refusal:
            return refusal
        return None


def blocks_at_end(policy: AttentionPolicy, num_prompt_tokens: int, max_tokens: int, num_choices: int) -> int:
    """Different blocks that all choices hold when they have drawn their last token, which is not read any more.

    Full blocks of the prompt are shared; each choice writes into its own copy of the block in which the prompt ends.
    """
    num_read = num_prompt_tokens + max(1, max_tokens) - 1
    held = _places_held(policy, num_read)
    if max_tokens <= 1:
        return len(held)  # Nothing was written after the prompt, so nothing was copied.
    num_shared = sum(place < num_prompt_tokens // BLOCK_TOKENS for place in held)
    return num_shared + num_choices * (len(held) - num_shared)


def _places_held(policy: AttentionPolicy, num_read: int) -> list[int]:
    """Logical blocks that a sequence keeps after ``num_read`` tokens: those that the next token sees."""
    num_places = -(-num_read // BLOCK_TOKENS)
    if policy.name is PolicyName.FULL:
        return list(range(num_places))
    first = policy.sinks // BLOCK_TOKENS
    start = max(first, policy.window_start(num_read) // BLOCK_TOKENS)
    return [*range(min(first, num_places)), *range(start, num_places)]
