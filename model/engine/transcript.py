"""What one sequence says: token ids in, text that is safe to show out, and when it is over. No torch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.engine.constraint import TokenConstraint
from model.engine.request import EvidenceSpan, FinishReason, SamplingParams
from model.engine.stopping import StopMatcher
from model.engine.verbatim import VerbatimConstraint


class Transcript(Protocol):
    """The text side of a sequence. The pieces that ``push`` returns, one after another, are the answer."""

    def allowed(self) -> Sequence[int] | NDArray[np.int64] | None:
        """Ids that may be drawn next, ascending; None for all."""

    def push(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Take a drawn token: text to show now, and the reason if the sequence is over."""

    def spans(self) -> tuple[EvidenceSpan, ...]:
        """Where the answer stands in the evidence; empty when it was written freely."""


class Decoder(Protocol):
    """A stream decoder, as the tokenizer gives it."""

    def push(self, token_id: int) -> str:
        """Text that became safe with this token."""


class FreeTranscript:
    """Text as the model writes it, up to the end of text, a stop string or the limit.

    Half a character at the end is left out.
    """

    def __init__(self, sampling: SamplingParams, decoder: Decoder, eos_ids: frozenset[int]) -> None:
        self._decoder = decoder
        self._eos_ids = eos_ids
        self._stops = StopMatcher(sampling.stop)
        self._num_left = sampling.max_tokens

    def allowed(self) -> list[int] | None:
        """All."""
        return None

    def push(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Text that cannot become a stop string any more."""
        self._num_left -= 1
        if token_id in self._eos_ids:
            return self._stops.flush(), FinishReason.STOP
        text, stopped = self._stops.push(self._decoder.push(token_id))
        if stopped:
            return text, FinishReason.STOP
        if self._num_left == 0:
            return text + self._stops.flush(), FinishReason.LENGTH
        return text, None

    def flush(self) -> str:
        """What was held back because it might have become a stop string."""
        return self._stops.flush()

    def spans(self) -> tuple[EvidenceSpan, ...]:
        """None."""
        return ()


class ConstrainedTranscript:
    """Free text of which a constraint says what may come next. It is over as soon as nothing but its end may come."""

    def __init__(self, free: FreeTranscript, constraint: TokenConstraint) -> None:
        self._free = free
        self._constraint = constraint

    def allowed(self) -> NDArray[np.int64] | None:
        """What the constraint allows."""
        return self._constraint.allowed()

    def push(self, token_id: int) -> tuple[str, FinishReason | None]:
        """As free text; what is complete has not been cut by the limit."""
        self._constraint.advance(token_id)
        text, reason = self._free.push(token_id)
        if reason is not FinishReason.STOP and self._constraint.is_complete:
            return text + self._free.flush(), FinishReason.STOP
        return text, reason

    def spans(self) -> tuple[EvidenceSpan, ...]:
        """None."""
        return ()


class VerbatimTranscript:
    """Text of the evidence, word by word; what is shown is never taken back."""

    def __init__(self, sampling: SamplingParams, constraint: VerbatimConstraint, eos_ids: frozenset[int]) -> None:
        self._constraint = constraint
        self._eos_ids = eos_ids
        self._num_left = sampling.max_tokens
        self._num_shown = 0

    def allowed(self) -> list[int] | None:
        """What goes on with a quotation, and the end of text where one may end."""
        return self._constraint.allowed()

    def push(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Whole words; with the last piece also the rest of a first word that was cut."""
        self._num_left -= 1
        self._constraint.advance(token_id)
        reason = None
        if token_id in self._eos_ids or self._constraint.is_complete:
            reason = FinishReason.STOP
        elif self._num_left == 0:
            reason = FinishReason.LENGTH
        text = self._constraint.text if reason is None else self._constraint.answer()
        shown, self._num_shown = self._num_shown, len(text)
        return text[shown:], reason

    def spans(self) -> tuple[EvidenceSpan, ...]:
        """The quotation, or quotations."""
        return tuple(self._constraint.result())
