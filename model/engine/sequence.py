"""One request on its way: the tokens of its choices, how many of them were read, and when things happened. No torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from model.engine.request import GenerationRequest
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
    always unread; it is read by the step that draws the next.
    """

    group: "SequenceGroup"
    choice: int
    token_ids: list[int]
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
        """Whether the whole prompt was read, so that each further step draws a token."""
        return self.num_read >= self.num_prompt_tokens

    def fork(self, choice: int) -> "Sequence":
        """Another choice that has read the same tokens."""
        return Sequence(self.group, choice, list(self.token_ids), self.num_read)


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

    def __post_init__(self) -> None:
        self.sequences = [Sequence(self, 0, list(self.request.prompt_ids))]
        self.is_forked = self.request.num_choices == 1

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

    def fork(self) -> list[Sequence]:
        """Make the other choices, now that the prompt was read; returns them."""
        assert not self.is_forked and self.sequences[0].is_decoding, "a prompt forks once, when it was read"
        forks = [self.sequences[0].fork(choice) for choice in range(1, self.request.num_choices)]
        self.sequences += forks
        self.is_forked = True
        return forks
