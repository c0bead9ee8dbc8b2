"""One request on its way: the tokens of its choices, how many of them were read, and when things happened. No torch."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from model.cache.place import Place
from model.engine.placement import LEAST_TOKENS, cuts, interval
from model.engine.request import GenerationRequest, PrefixOutcome
from model.policy import AttentionPolicy


class Status(StrEnum):
    """Where a request stands between submit and its end.

    ``SAVED``: it was preempted; what it held is in host memory, and it stands in line again.
    """

    WAITING = "waiting"
    RUNNING = "running"
    SAVED = "saved"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what was generated after it: one choice of a request.

    ::

        |<------------- token_ids ------------->|
        |<------- prompt ------->|<- completion->|
        |<------- num_read ------>|  unread      |

    ``num_read`` tokens are in the state and the key/value blocks. The last token that was drawn is
    always unread; it is read by the step that draws the next. ``token_ids`` are 32-bit integers in one piece.
    """

    group: "SequenceGroup"
    choice: int
    token_ids: "array[int]"
    num_read: int = 0

    @property
    def policy(self) -> AttentionPolicy:
        """The attention policy it is read under."""
        return self.group.policy

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.group.num_prompt_tokens

    @property
    def num_completion_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether a token was drawn, so that each further step reads one and draws the next."""
        return self.num_read >= self.num_prompt_tokens and not self.is_recalled

    @property
    def is_recalled(self) -> bool:
        """Whether the whole prompt was there already, so that its first token is drawn without reading."""
        return self.num_read == len(self.token_ids)

    def selected_from(self, num_tokens: int) -> int | None:
        """Where selection began, if it did among the first ``num_tokens``: what is remembered then depends on it."""
        return self.policy.selected_from(num_tokens, self.group.request.select_from)

    def fork(self, choice: int) -> "Sequence":
        """Another choice that has read the same tokens."""
        return Sequence(self.group, choice, self.token_ids[:], self.num_read)


@dataclass(slots=True, eq=False)
class SequenceGroup:
    """The choices of one request. Until the prompt is read there is one sequence; then it forks into all choices.

    ``sequences`` are those that go on; a choice that has ended is not among them. They are admitted, preempted,
    paused and ended together. Times are of a monotonic clock.
    """

    request: GenerationRequest
    policy: AttentionPolicy
    submitted_at: float
    sequences: list[Sequence] = field(init=False)
    is_forked: bool = False
    status: Status = Status.WAITING
    is_paused: bool = False
    num_preemptions: int = 0
    num_completion_tokens: int = 0
    admitted_at: float | None = None
    first_token_at: float | None = None
    prefix: PrefixOutcome | None = None
    is_forgotten: bool = False
    information_bits: float | None = None
    surprisals: "array[float] | None" = None
    _cuts: list[tuple[int, Place]] = field(default_factory=list)
    _interval: int = 0
    _kept_at: int = 0

    def __post_init__(self) -> None:
        self.sequences = [Sequence(self, 0, array("i", self.request.prompt_ids))]
        self.is_forked = self.request.num_choices == 1
        if self.request.surprisals_from is not None:
            self.surprisals = array("d")

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def tenant(self) -> str:
        """Whose share of the engine it uses."""
        return self.request.tenant

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def max_num_tokens(self) -> int:
        """Most tokens one of its choices can ever have."""
        return self.num_prompt_tokens + self.request.sampling.max_tokens

    @property
    def num_slots(self) -> int:
        """State slots it holds or is going to fork into."""
        return len(self.sequences) if self.is_forked else self.request.num_choices

    @property
    def deadline_at(self) -> float | None:
        """When it must have ended."""
        seconds = self.request.max_seconds
        return None if seconds is None else self.submitted_at + seconds

    def begin(self, prefix: PrefixOutcome, num_common: int, chunk_tokens: int) -> None:
        """The prompt is read from ``prefix.num_tokens`` on, ``num_common`` tokens of it were seen before."""
        self.prefix = prefix
        self._kept_at = prefix.num_tokens
        self._interval = interval(self.num_prompt_tokens, chunk_tokens)
        self._cuts = [*cuts(self.num_prompt_tokens, prefix.num_tokens, self.request.keep, num_common)]

    def skip(self, start: int, end: int, reason: str) -> None:
        """The tokens from ``start`` to ``end`` of the prompt need not be read after all."""
        before = 0 if self.prefix is None else self.prefix.num_tokens
        self.prefix = PrefixOutcome("hit", reason, before + end - start)
        self._kept_at = end

    def is_told(self, end: int) -> bool:
        """Whether somebody wants to know the surprisal of any token up to that at ``end``."""
        first = self.request.surprisals_from
        return self.information_bits is not None or (first is not None and first <= end)

    def tell(self, place: int, bits: Iterable[float]) -> None:
        """The surprisal of the prompt's tokens from ``place`` on, in bits, as far as it is wanted."""
        first = self.request.surprisals_from
        if self.surprisals is None or first is None:
            return
        wanted = [*bits][max(0, first - place) : max(0, self.num_prompt_tokens - place)]
        if wanted:
            missing = max(first, place) - first - len(self.surprisals)
            assert not missing, f"the surprisal of {missing} tokens before {place} was not told"
            self.surprisals.extend(wanted)

    def next_cut(self, num_read: int) -> int:
        """Where reading must pause after ``num_read`` tokens of the prompt, at the latest at its end."""
        return next((at for at, _ in self._cuts if at > num_read), self.num_prompt_tokens)

    def place_at(self, num_tokens: int) -> Place | None:
        """Why the state after ``num_tokens`` of the prompt is to be kept; None if it is not."""
        if self.request.keep.nothing or self.is_forgotten or num_tokens < LEAST_TOKENS:
            return None
        if num_tokens == self.num_prompt_tokens:
            return Place.PROMPT
        return dict(self._cuts).get(num_tokens) or (
            Place.INTERVAL if num_tokens - self._kept_at >= self._interval > 0 else None
        )

    def kept(self, num_tokens: int) -> None:
        """The state after ``num_tokens`` is kept."""
        self._kept_at = num_tokens

    def fork(self) -> list[Sequence]:
        """Make the other choices, now that the prompt was read; returns them."""
        is_read = self.sequences[0].num_read == self.num_prompt_tokens
        assert not self.is_forked and is_read, "a prompt forks once, when it was read"
        forks = [self.sequences[0].fork(choice) for choice in range(1, self.request.num_choices)]
        self.sequences += forks
        self.is_forked = True
        return forks
