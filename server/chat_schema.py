"""The chat completion request of OpenAI's schema, with the extension object ``fano``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from server.chat_fields import CHAT_FIELDS, MESSAGE_FIELDS, without_idle_fields
from server.schemas import MAX_DOCUMENTS, MAX_PASSAGES, DocumentId, Recall, WireModel


class TextPart(WireModel):
    """A part of a message's content; text is the only kind."""

    type: Literal["text"]
    text: str


class ChatMessage(WireModel):
    """One turn. ``developer`` is the newer name of ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(WireModel):
    """``include_obfuscation`` is accepted and does nothing: there is no padding to leave out."""

    include_usage: bool = False
    include_obfuscation: bool = False


class FanoOptions(WireModel):
    """The extension object."""

    documents: Annotated[list[DocumentId], Field(max_length=MAX_DOCUMENTS)] = Field(default_factory=list)
    recall: Recall | None = None
    max_passages: Annotated[int, Field(ge=1, le=MAX_PASSAGES)] | None = None


class ChatRequest(WireModel):
    """A request with the fields that ``chat_fields.CHAT_FIELDS`` calls honoured."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[Annotated[str, StringConstraints(min_length=1)]] | None = None
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

    @field_validator("stop")
    @classmethod
    def _at_most_four(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > 4:
            raise ValueError("at most four stop strings are allowed")
        if stop == "":
            raise ValueError("a stop string must not be empty")
        return stop

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
        """The stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
