"""What becomes of the tokens that are drawn for a request: texts, reasons, log probabilities and the bill."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from model.engine.holdings import HeldBytes
from model.engine.logprobs import token_logprobs
from model.engine.request import PrefixOutcome, RequestUsage, TokenLogprob
from model.engine.sampler import SequenceSampler
from model.engine.sequence import Sequence, SequenceGroup
from model.engine.step import PlannedChunk
from model.engine.transcript import Transcript


@dataclass(slots=True)
class Choice:
    """What draws the tokens of one choice, and what makes text of them. ``last_at`` is when it got its last token."""

    sampler: SequenceSampler
    transcript: Transcript
    last_at: float | None = None


@dataclass(slots=True)
class Generation:
    """A request on its way with its choices; ``most_held`` is the most it held whenever one of them ended."""

    group: SequenceGroup
    choices: tuple[Choice, ...]
    most_held: HeldBytes = field(default_factory=HeldBytes)
    _prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)

    @staticmethod
    def of(group: SequenceGroup, transcript: Callable[[], Transcript]) -> "Generation":
        """The generation of a request of which nothing was read; ``transcript`` makes an empty one."""
        request = group.request
        choices = tuple(
            Choice(SequenceSampler(request.sampling, request.prompt_ids, choice), transcript())
            for choice in range(request.num_choices)
        )
        return Generation(group, choices)

    def choice(self, sequence: Sequence) -> Choice:
        """That of ``sequence``."""
        return self.choices[sequence.choice]

    def keep_prompt_logprobs(self, chunk: PlannedChunk, logits: Tensor) -> None:
        """Take the log probabilities of a prompt chunk from the logits [T, V] of its tokens."""
        num_top = self.group.request.sampling.prompt_logprobs
        if chunk.is_decode or num_top is None:
            return
        # Each row tells the token after its own; the last row of the prompt tells the first that is drawn.
        told = self.group.request.prompt_ids[chunk.start + 1 : chunk.end + 1]
        self._prompt_logprobs += token_logprobs(logits[: len(told)], told, num_top)

    def take_prompt_logprobs(self, sequence: Sequence) -> tuple[TokenLogprob | None, ...] | None:
        """Those of the whole prompt, for the first event of the first choice; None for any other."""
        is_first = sequence.choice == 0 and sequence.num_completion_tokens == 1
        if not is_first or self.group.request.sampling.prompt_logprobs is None:
            return None
        return (None, *self._prompt_logprobs)

    def hold(self, held: HeldBytes) -> None:
        """The request holds this much now."""
        self.most_held = max(self.most_held, held, key=lambda each: (each.total, each.kv_archive, each.kv_summaries))

    def usage(self, dtype: str, now: float) -> RequestUsage:
        """The bill."""
        group, held = self.group, self.most_held
        admitted, first = group.admitted_at, group.first_token_at
        prefix = group.prefix or PrefixOutcome("miss", "not_begun")
        return RequestUsage(
            num_prompt_tokens=group.num_prompt_tokens,
            num_cached_tokens=prefix.num_tokens,
            num_completion_tokens=group.num_completion_tokens,
            policy=group.policy,
            dtype=dtype,
            kv_bytes=held.kv,
            ssm_state_bytes=held.ssm_state,
            conv_state_bytes=held.conv_state,
            state_capacity_bits=8 * held.total,
            queue_seconds=(now if admitted is None else admitted) - group.submitted_at,
            ttft_seconds=None if first is None else first - group.submitted_at,
            total_seconds=now - group.submitted_at,
            num_preemptions=group.num_preemptions,
            prefix=prefix,
            information_bits=group.information_bits,
            surprisals=group.surprisals,
            kv_archive_bytes=held.kv_archive,
            kv_summary_bytes=held.kv_summaries,
        )
