"""How tokens are to be drawn and sent, as every route that writes takes it."""

import re
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from server.answers.inquiry import Sampling
from server.schemas import Text, WireModel

MAX_CHOICES = 128
TOKEN_ID = re.compile("0|[1-9][0-9]{0,8}")


def _as_list(stop: object) -> object:
    if stop == "":
        raise ValueError("must not be empty")
    return [stop] if isinstance(stop, str) else stop


def _by_token_id(biases: object) -> object:
    if isinstance(biases, dict) and not all(isinstance(key, str) and TOKEN_ID.fullmatch(key) for key in biases):
        raise ValueError("should have token ids in digits as its keys")
    return biases


Penalty = Annotated[float, Field(ge=-2, le=2)]
NumTokens = Annotated[int, Field(ge=1, le=100_000_000)]
NumLogprobs = Annotated[int, Field(ge=0, le=20)]
# The keys are looked at first: a key stands in the path of an error about its value.
TokenBiases = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_by_token_id)]
StopStrings = Annotated[
    list[Annotated[Text, StringConstraints(min_length=1)]],
    Field(max_length=4),
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 4}]}),
]


class StreamOptions(WireModel):
    """``include_obfuscation`` is accepted and does nothing: there is no padding to leave out."""

    include_usage: bool = False
    include_obfuscation: bool = False


class SamplingRequest(WireModel):
    """The fields that chats and completions have in common."""

    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopStrings | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: TokenBiases | None = None
    top_k: Annotated[int, Field(ge=-1, le=100_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    # Beyond these bounds logits leave the range of their type, whatever the model.
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    return_progress: bool | None = None

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        if self.return_progress and not self.stream:
            raise ValueError("return_progress is only allowed when stream is true")
        return self

    @property
    def num_choices(self) -> int:
        """How many replies are wanted."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with the bill."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however many."""
        return tuple(self.stop or ())

    def sampling_of(self, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None) -> Sampling:
        """How the tokens are drawn, with what each route has in a form of its own."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stop_strings,
            num_choices=self.num_choices,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=tuple((int(token_id), bias) for token_id, bias in (self.logit_bias or {}).items()),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
