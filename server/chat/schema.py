"""The chat completion request of OpenAI's schema, with the extension object ``fano``."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tiles import MOST_SELECTED
from server.answers.inquiry import Sampling
from server.answers.schema import FactKinds, Within
from server.chat.fields import CHAT_FIELDS, MESSAGE_FIELDS, without_idle_fields
from server.chat.response_format import ResponseFormat
from server.chat.tool_schema import Choice, ToolCall, Tools
from server.errors import RequestInvalid
from server.sampling_schema import NumLogprobs, NumTokens, SamplingRequest
from server.schemas import (
    MAX_DOCUMENTS,
    MAX_PASSAGES,
    SESSION_NAME,
    ChatStart,
    DocumentId,
    Facts,
    Place,
    Recall,
    Text,
    WireModel,
    carried_by_utf8,
)


class FilePart(WireModel):
    """A file by the id that it was uploaded under, or in base64 with a name; never both."""

    file_id: Annotated[Text, StringConstraints(min_length=1, max_length=128)] | None = None
    file_data: Annotated[Text, StringConstraints(min_length=1)] | None = None
    filename: Annotated[Text, StringConstraints(max_length=255)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.file_id is None) == (self.file_data is None):
            raise ValueError("should have either file_id or file_data")
        return self


class ContentPart(WireModel):
    """A part of a message's content: a text, or a file that is to be asked about."""

    type: Literal["text", "file"]
    text: Text | None = None
    file: FilePart | None = None

    @model_validator(mode="after")
    def _of_its_type(self) -> Self:
        if (self.text is None) == (self.type == "text") or (self.file is None) == (self.type == "file"):
            raise ValueError(f"should have the field {self.type!r} and no other, as its type says")
        return self


def _as_parts(content: object) -> object:
    if isinstance(content, str):
        return [ContentPart(type="text", text=carried_by_utf8(content))]
    if not isinstance(content, list):
        raise ValueError("should be a text or a list of parts")
    return content


_PART_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"enum": ["text", "file"]},
        "text": {"type": "string"},
        "file": {
            "type": "object",
            "properties": {key: {"type": "string"} for key in ("file_id", "file_data", "filename")},
        },
    },
    "required": ["type"],
}
# Validated as lists, so that an error's path is the path in the request and names no member of a union.
Content = Annotated[
    list[ContentPart],
    BeforeValidator(_as_parts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA}]}),
]


class ChatMessage(WireModel):
    """One turn. ``developer`` is the newer name of ``system``."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    tool_call_id: Annotated[Text, StringConstraints(min_length=1, max_length=128)] | None = None
    tool_calls: list[ToolCall] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return "".join(part.text for part in self.content if part.text is not None)


class PolicyOptions(WireModel):
    """The attention policy of one request; numbers that are left out are the engine's own."""

    name: Literal["full", "window", "archive"]
    sinks: Annotated[int, Field(ge=0, le=10_000_000, multiple_of=BLOCK_TOKENS)] | None = None
    window: Annotated[int, Field(ge=BLOCK_TOKENS, le=10_000_000, multiple_of=BLOCK_TOKENS)] | None = None
    select: Annotated[int, Field(ge=1, le=MOST_SELECTED)] | None = None

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        if self.name == "full" and (self.sinks is not None or self.window is not None):
            raise ValueError("sinks and window mean nothing under policy full; leave them out")
        if self.name != "archive" and self.select is not None:
            raise ValueError("select means something under policy archive alone; leave it out")
        return self

    def over(self, own: AttentionPolicy) -> AttentionPolicy:
        """The policy with the engine's own numbers where none are named."""
        return AttentionPolicy(
            PolicyName(self.name),
            own.sinks if self.sinks is None else self.sinks,
            own.window if self.window is None else self.window,
            own.select if self.select is None else self.select,
        )


class FanoOptions(WireModel):
    """The extension object."""

    documents: Annotated[list[DocumentId], Field(max_length=MAX_DOCUMENTS)] = Field(default_factory=list)
    recall: Recall | None = None
    start: ChatStart | None = None
    question_place: Place | None = None
    facts: Facts | None = None
    within: Within | None = None
    fact_kinds: FactKinds | None = None
    policy: PolicyOptions | None = None
    max_passages: Annotated[int, Field(ge=1, le=MAX_PASSAGES)] | None = None
    # Also the names of documents' readings, which are refused with the remedy.
    session: Annotated[str, StringConstraints(pattern=rf"^document:.|{SESSION_NAME}")] | None = None


def _with_content(message: dict[str, Any]) -> dict[str, Any]:
    """A message that only calls functions has no text."""
    if message.get("tool_calls") and message.get("content") is None:
        return {**message, "content": ""}
    return message


class ChatRequest(SamplingRequest):
    """A request with the fields that ``chat_fields.CHAT_FIELDS`` calls honoured."""

    model: Text
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: NumTokens | None = None
    max_tokens: NumTokens | None = None
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None
    prompt_logprobs: NumLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
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
                _with_content(without_idle_fields(message, MESSAGE_FIELDS, f"messages.{place}."))
                if isinstance(message, dict)
                else message
                for place, message in enumerate(messages)
            ]
        return kept

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens exclude each other; send one of them")
        if self.top_logprobs and not self.logprobs:
            raise RequestInvalid("top_logprobs needs logprobs: true", "top_logprobs")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestInvalid("prompt_logprobs is not sent in a stream; leave out one of them", "prompt_logprobs")
        for place, message in enumerate(self.messages):
            if message.role != "user" and any(part.file is not None for part in message.content):
                raise RequestInvalid("files stand in messages of the user", f"messages.{place}.content")
        return self

    @property
    def file_parts(self) -> list[tuple[str, FilePart]]:
        """The files among the messages, each with its path in the request."""
        return [
            (f"messages.{place}.content.{number}.file", part.file)
            for place, message in enumerate(self.messages)
            for number, part in enumerate(message.content)
            if part.file is not None
        ]

    @property
    def num_characters(self) -> int:
        """How much is said in all messages."""
        return sum(len(part.text) for message in self.messages for part in message.content if part.text is not None)

    @property
    def answer_tokens(self) -> int | None:
        """The limit on the reply's tokens, by whichever name it came."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most probable tokens are told beside each token; None when not even its own is."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def sampling(self) -> Sampling:
        """How the tokens are drawn."""
        return self.sampling_of(self.answer_tokens, self.num_logprobs, self.prompt_logprobs)
