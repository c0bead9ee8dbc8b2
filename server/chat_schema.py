"""The chat completion request of OpenAI's schema, with the extension object ``fano``."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from server.chat_fields import CHAT_FIELDS, MESSAGE_FIELDS, without_idle_fields
from server.errors import RequestInvalid
from server.inquiry import Sampling
from server.question_schema import FactKinds, Within
from server.schemas import (
    MAX_DOCUMENTS,
    MAX_PASSAGES,
    SESSION_NAME,
    DocumentId,
    Facts,
    Place,
    Recall,
    Start,
    Text,
    WireModel,
    carried_by_utf8,
)


class TextPart(WireModel):
    """A part of a message's content; text is the only kind."""

    type: Literal["text"]
    text: Text


def _as_parts(content: object) -> object:
    if isinstance(content, str):
        return [TextPart(type="text", text=carried_by_utf8(content))]
    if not isinstance(content, list):
        raise ValueError("should be a text or a list of text parts")
    return content


def _as_list(stop: object) -> object:
    if stop == "":
        raise ValueError("must not be empty")
    return [stop] if isinstance(stop, str) else stop


# Validated as lists, so that an error's path is the path in the request and names no member of a union.
Content = Annotated[
    list[TextPart],
    BeforeValidator(_as_parts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": TextPart.model_json_schema()}]}),
]
StopStrings = Annotated[
    list[Annotated[Text, StringConstraints(min_length=1)]],
    Field(max_length=4),
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 4}]}),
]


MAX_CHOICES = 128
Penalty = Annotated[float, Field(ge=-2, le=2)]
NumLogprobs = Annotated[int, Field(ge=0, le=20)]


TOKEN_ID = re.compile("0|[1-9][0-9]{0,8}")


def _by_token_id(biases: object) -> object:
    if isinstance(biases, dict) and not all(isinstance(key, str) and TOKEN_ID.fullmatch(key) for key in biases):
        raise ValueError("should have token ids in digits as its keys")
    return biases


# The keys are looked at first: a key stands in the path of an error about its value.
TokenBiases = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_by_token_id)]


class ChatMessage(WireModel):
    """One turn. ``developer`` is the newer name of ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    @property
    def text(self) -> str:
        """The content as one text."""
        return "".join(part.text for part in self.content)


class StreamOptions(WireModel):
    """``include_obfuscation`` is accepted and does nothing: there is no padding to leave out."""

    include_usage: bool = False
    include_obfuscation: bool = False


class PolicyOptions(WireModel):
    """The attention policy of one request; numbers that are left out are the engine's own."""

    name: Literal["full", "window"]
    sinks: Annotated[int, Field(ge=0, le=10_000_000, multiple_of=BLOCK_TOKENS)] | None = None
    window: Annotated[int, Field(ge=BLOCK_TOKENS, le=10_000_000, multiple_of=BLOCK_TOKENS)] | None = None

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        if self.name == "full" and (self.sinks is not None or self.window is not None):
            raise ValueError("sinks and window mean nothing under policy full; leave them out")
        return self

    def over(self, own: AttentionPolicy) -> AttentionPolicy:
        """The policy with the engine's own numbers where none are named."""
        return AttentionPolicy(
            PolicyName(self.name),
            own.sinks if self.sinks is None else self.sinks,
            own.window if self.window is None else self.window,
        )


class FanoOptions(WireModel):
    """The extension object."""

    documents: Annotated[list[DocumentId], Field(max_length=MAX_DOCUMENTS)] = Field(default_factory=list)
    recall: Recall | None = None
    start: Start | None = None
    question_place: Place | None = None
    facts: Facts | None = None
    within: Within | None = None
    fact_kinds: FactKinds | None = None
    policy: PolicyOptions | None = None
    max_passages: Annotated[int, Field(ge=1, le=MAX_PASSAGES)] | None = None
    # Also the names of documents' readings, which are refused with the remedy.
    session: Annotated[str, StringConstraints(pattern=rf"^document:.|{SESSION_NAME}")] | None = None


class ChatRequest(WireModel):
    """A request with the fields that ``chat_fields.CHAT_FIELDS`` calls honoured."""

    model: Text
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
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
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    top_k: Annotated[int, Field(ge=-1, le=100_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    # Beyond these bounds logits leave the range of their type, whatever the model.
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    prompt_logprobs: NumLogprobs | None = None
    fano: FanoOptions = FanoOptions()

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, data: object) -> object:
        """Take neutral fields away and refuse what is not supported, both by the table."""
        if not isinstance(data, dict):
            return data
        kept = without_idle_fields(data, CHAT_FIELDS)
        messages = kept.get("messages")
        if isinstance(messages, list):
            kept["messages"] = [
                without_idle_fields(message, MESSAGE_FIELDS, f"messages.{place}.")
                if isinstance(message, dict)
                else message
                for place, message in enumerate(messages)
            ]
        return kept

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens exclude each other; send one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        if self.top_logprobs and not self.logprobs:
            raise RequestInvalid("top_logprobs needs logprobs: true", "top_logprobs")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestInvalid("prompt_logprobs is not sent in a stream; leave out one of them", "prompt_logprobs")
        return self

    @property
    def answer_tokens(self) -> int | None:
        """The limit on the reply's tokens, by whichever name it came."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_choices(self) -> int:
        """How many replies are wanted."""
        return self.n or 1

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most probable tokens are told beside each token; None when not even its own is."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def sampling(self) -> Sampling:
        """How the tokens are drawn."""
        return Sampling(
            max_tokens=self.answer_tokens,
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
            logprobs=self.num_logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however many."""
        return tuple(self.stop or ())
