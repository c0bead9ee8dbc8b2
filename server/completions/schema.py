"""The completion request of OpenAI's older schema, and what becomes of each of its fields."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from server.answers.inquiry import Sampling
from server.chat.fields import HONOURED, PROGRESS, ChatField, Treatment, without_idle_fields
from server.errors import RequestInvalid
from server.sampling_schema import MAX_CHOICES, SamplingRequest
from server.schemas import Text, carried_by_utf8

# Each is a request of its own to the engine.
MAX_PROMPTS = 32
# OpenAI's, of completions alone.
DEFAULT_TOKENS = 16

COMPLETION_FIELDS: Mapping[str, ChatField] = {
    "model": HONOURED,
    "prompt": HONOURED,
    "best_of": HONOURED,
    "echo": HONOURED,
    "frequency_penalty": HONOURED,
    "logit_bias": HONOURED,
    "logprobs": HONOURED,
    "max_tokens": HONOURED,
    "n": HONOURED,
    "presence_penalty": HONOURED,
    "seed": HONOURED,
    "stop": HONOURED,
    "stream": HONOURED,
    "stream_options": HONOURED,
    "temperature": HONOURED,
    "top_p": HONOURED,
    # Not OpenAI's, but sent by many clients: as vLLM names them.
    "min_p": HONOURED,
    "repetition_penalty": HONOURED,
    "top_k": HONOURED,
    "return_progress": ChatField(Treatment.HONOURED, PROGRESS),
    "suffix": ChatField(Treatment.REFUSED, "the model does not write into a gap", ("",)),
    "user": ChatField(Treatment.NEUTRAL, "names the user to a provider"),
}

Prompt = str | list[int]


def _as_prompts(given: object) -> list[Prompt]:
    """A text, its token ids, or a list of either, as a list of either."""
    if isinstance(given, str) or (isinstance(given, list) and given and all(map(_is_id, given))):
        given = [given]
    if not isinstance(given, list) or not given:
        raise ValueError("should be a text, a list of token ids, or a list of such")
    for place, each in enumerate(given):
        if isinstance(each, str):
            try:
                carried_by_utf8(each)
            except ValueError as error:
                raise RequestInvalid(f"prompt.{place} {error}", f"prompt.{place}") from None
        elif not isinstance(each, list) or not all(map(_is_id, each)):
            raise RequestInvalid(
                f"prompt.{place} should be a text or a list of token ids, which are whole numbers from 0 on",
                f"prompt.{place}",
            )
    return given


def _is_id(each: object) -> bool:
    return isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**31


_IDS = {"type": "array", "items": {"type": "integer"}}
Prompts = Annotated[
    # Checked by hand: a million numbers one by one would take pydantic's error handling a second.
    Any,
    BeforeValidator(_as_prompts),
    Field(max_length=MAX_PROMPTS),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _IDS,
                {"type": "array", "items": {"anyOf": [{"type": "string"}, _IDS]}, "maxItems": MAX_PROMPTS},
            ]
        }
    ),
]


class CompletionRequest(SamplingRequest):
    """A request with the fields that ``COMPLETION_FIELDS`` calls honoured."""

    model: Text
    prompt: Prompts
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=100_000_000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, data: object) -> object:
        return without_idle_fields(data, COMPLETION_FIELDS) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.best_of is not None and self.best_of < self.num_choices:
            raise RequestInvalid(f"best_of is {self.best_of}, but n is {self.num_choices}; raise it", "best_of")
        if self.is_chosen and self.stream:
            raise RequestInvalid("best_of is not sent in a stream: which is best is known at the end", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise RequestInvalid("max_tokens is 0, which leaves nothing to send without echo", "max_tokens")
        if self.echo and self.stream and self.logprobs is not None:
            raise RequestInvalid("logprobs of an echo are not sent in a stream; leave out one of them", "logprobs")
        return self

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts, however many."""
        prompts: list[Prompt] = self.prompt
        return prompts

    @property
    def is_chosen(self) -> bool:
        """Whether more is written than is sent."""
        return (self.best_of or 1) > self.num_choices

    @property
    def sampling(self) -> Sampling:
        """How the tokens are drawn: at least one, since the engine draws one after each prompt."""
        max_tokens = DEFAULT_TOKENS if self.max_tokens is None else max(1, self.max_tokens)
        logprobs = self.logprobs if self.logprobs is not None or not self.is_chosen else 0
        sampling = self.sampling_of(max_tokens, logprobs, self.logprobs if self.echo else None)
        return sampling if self.best_of is None else replace(sampling, num_choices=self.best_of)
