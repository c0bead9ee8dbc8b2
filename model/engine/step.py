"""What one step reads. No torch."""

from dataclasses import dataclass

from model.cache.place import Place
from model.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """The tokens ``start`` to ``start + num_tokens`` of a sequence are to be read; what holds of them at planning.

    ``is_decode``: the sequence is past its prompt. ``draws_token``: a token is drawn afterwards, which it is not after
    a chunk before a prompt's last. The logits of the last ``num_logits`` tokens are needed. ``place`` is why the state
    after the chunk is to be kept, if it is. A chunk of no tokens draws from what is known of a recalled prompt's end.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    is_decode: bool
    draws_token: bool
    num_logits: int
    place: Place | None = None

    @staticmethod
    def of(sequence: Sequence, num_tokens: int) -> "PlannedChunk":
        """The next ``num_tokens`` of ``sequence``."""
        start, sampling = sequence.num_read, sequence.group.request.sampling
        is_decode, end = sequence.is_decoding, start + num_tokens
        draws_token = end == len(sequence.token_ids) and sampling.max_tokens > 0
        place = None if is_decode or not num_tokens else sequence.group.place_at(end)
        all_logits = not is_decode and sampling.prompt_logprobs is not None
        # What is kept is kept with its last row, from which the next token can be drawn or told.
        num_logits = num_tokens if all_logits else int(draws_token or place is not None)
        return PlannedChunk(sequence, start, num_tokens, is_decode, draws_token, num_logits, place)

    @property
    def end(self) -> int:
        """First position that is not read in this step."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step reads: streams first, then prompts."""

    chunks: tuple[PlannedChunk, ...]

    @property
    def num_decodes(self) -> int:
        """Streams that get a token."""
        return sum(chunk.is_decode for chunk in self.chunks)

    @property
    def phase(self) -> str:
        """``decode``, ``prefill`` or ``mixed``."""
        if self.num_decodes == 0:
            return "prefill"
        return "decode" if self.num_decodes == len(self.chunks) else "mixed"

    @property
    def num_tokens(self) -> int:
        """Tokens read in the step."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of prompts read in the step."""
        return sum(chunk.num_tokens for chunk in self.chunks if not chunk.is_decode)
