"""The chat completion request of OpenAI's schema, with the extension object ``fano``."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from server.chat_fields import CHAT_FIELDS, MESSAGE_FIELDS, without_idle_fields
from server.schemas import MAX_DOCUMENTS, MAX_PASSAGES, DocumentId, Recall, Text, WireModel, carried_by_utf8


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
    policy: PolicyOptions | None = None
    max_passages: Annotated[int, Field(ge=1, le=MAX_PASSAGES)] | None = None


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
        return self

    @property
    def answer_tokens(self) -> int | None:
        """The limit on the reply's tokens, by whichever name it came."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however many."""
        return tuple(self.stop or ())
