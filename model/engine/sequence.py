"""One request on its way: its tokens, how many of them were read, and when things happened. No torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from model.engine.request import GenerationRequest
from model.policy import AttentionPolicy


class Status(StrEnum):
    """Where a sequence stands between submit and its end."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what was generated after it.

    ::

        |<------------- token_ids ------------->|
        |<------- prompt ------->|<- completion->|
        |<------- num_read ------>|  unread      |

    ``num_read`` tokens are in the state and the key/value blocks. The last token that was drawn is
    always unread; it is read by the step that draws the next. Times are of a monotonic clock.
    """

    request: GenerationRequest
    policy: AttentionPolicy
    submitted_at: float
    token_ids: list[int] = field(init=False)
    num_read: int = 0
    status: Status = Status.WAITING
    admitted_at: float | None = None
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def num_completion_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def max_num_tokens(self) -> int:
        """Most tokens this sequence can ever have."""
        return self.num_prompt_tokens + self.request.sampling.max_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether the whole prompt was read, so that each further step draws a token."""
        return self.num_read >= self.num_prompt_tokens
