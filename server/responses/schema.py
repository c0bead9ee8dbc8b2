"""The response request of OpenAI's schema, and that which only counts its tokens."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from server.chat.fields import ChatField, FieldRefused, without_idle_fields
from server.chat.response_format import ANY_OBJECT
from server.chat.schema import FanoOptions
from server.chat.tooling import Functions
from server.errors import RequestInvalid
from server.responses.fields import COUNT_FIELDS, INCLUDED, NEVER_OCCURS, RESPONSE_FIELDS, TEXT_FIELDS, TOOLS_REFUSED
from server.responses.input_items import Items, input_items
from server.responses.tools import ALLOWED, MOST_TOOLS, AnyTool, FileSearchTool, FunctionTool, tool_choice, tools
from server.sampling_schema import NumLogprobs
from server.schemas import Text, WireModel, carried_by_utf8

ResponseId = Annotated[Text, StringConstraints(min_length=1, max_length=128)]
Metadata = Annotated[
    dict[
        Annotated[Text, StringConstraints(max_length=64)],
        Annotated[Text, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]


def _known_include(include: object) -> object:
    if isinstance(include, str) and include not in (*INCLUDED, *NEVER_OCCURS):
        raise ValueError(f"expected one of {', '.join((*INCLUDED, *NEVER_OCCURS))}")
    return include


Include = Annotated[str, BeforeValidator(_known_include), WithJsonSchema({"enum": [*INCLUDED, *NEVER_OCCURS]})]
ToolChoice = Annotated[
    str | dict[str, Any],
    BeforeValidator(tool_choice),
    WithJsonSchema({"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]}),
]


class TextFormat(WireModel):
    """The form of the reply's text. ``strict`` changes nothing: every schema is kept to the letter, or refused."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    description: Text | None = None
    wanted: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        has_schema = self.type == "json_schema"
        for field, value in (("name", self.name), ("schema", self.wanted)):
            if (value is not None) != has_schema:
                word = "needs" if has_schema else "has no"
                raise RequestInvalid(f"text.format of type {self.type!r} {word} {field}", f"text.format.{field}")
        try:
            # The response repeats it.
            carried_by_utf8(json.dumps(self.wanted, ensure_ascii=False, allow_nan=False))
        except (ValueError, RecursionError):
            message = (
                "text.format.schema holds what a response cannot: infinity, half a surrogate pair, or too much depth"
            )
            raise RequestInvalid(message, "text.format.schema") from None
        return self

    @property
    def schema_asked(self) -> tuple[Mapping[str, Any], str] | None:
        """The schema of the text and the path of the field to blame for it; None where any text will do."""
        if self.type == "text":
            return None
        return (ANY_OBJECT, "text.format") if self.wanted is None else (self.wanted, "text.format.schema")

    def view(self) -> dict[str, Any]:
        """The form as the response says it was used."""
        if self.type != "json_schema":
            return {"type": self.type}
        shown = {"type": self.type, "name": self.name, "schema": self.wanted, "strict": self.strict is not False}
        return shown if self.description is None else shown | {"description": self.description}


class TextOptions(WireModel):
    """How the reply is written."""

    format: TextFormat | None = None


class ResponseInput(WireModel):
    """What a response is made from."""

    input: Items
    instructions: Text | None = None
    previous_response_id: ResponseId | None = None
    text: TextOptions | None = None
    tools: Annotated[list[AnyTool], Field(max_length=MOST_TOOLS)] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    truncation: Literal["auto", "disabled"] | None = None
    fano: FanoOptions = FanoOptions()

    @model_validator(mode="after")
    def _tools_go_together(self) -> Self:
        searches = [place for place, tool in enumerate(self.tools) if isinstance(tool, FileSearchTool)]
        if len(searches) > 1:
            raise RequestInvalid(
                "tools has more than one file_search; name all vector stores in one", f"tools.{searches[1]}"
            )
        if searches and len(self.tools) > 1:
            raise RequestInvalid(
                "tools has file_search beside functions, but an answer from documents calls nothing; search in one "
                "response, and call functions in another that goes on from it",
                "tools",
            )
        if self.fano.session is not None:
            reason = "previous_response_id says which conversation goes on"
            raise FieldRefused("fano.session", reason)
        if self.tool_choice == "required" and not self.tools:
            raise RequestInvalid("tool_choice is 'required', which needs tools", "tool_choice")
        known = [tool.named for tool in self.tools]
        for path, named in self._named_tools():
            if named not in known:
                raise RequestInvalid(f"{path} is {named!r}, which is not among tools", path)
        return self

    @property
    def form(self) -> TextFormat:
        """The form of the reply's text."""
        return (self.text.format if self.text else None) or TextFormat()

    @property
    def file_search(self) -> FileSearchTool | None:
        """The tool, where the model may use it."""
        tool = self.tools[0] if self.tools and self.tool_choice != "none" else None
        return tool if isinstance(tool, FileSearchTool) else None

    @property
    def brings_files(self) -> bool:
        """Whether a file comes with the input."""
        return any(part.type == "input_file" for item in self.input for part in item.content or ())

    @property
    def num_characters(self) -> int:
        """How much is said in the input."""
        return sum(len(item.text) for item in self.input)

    @property
    def must_search(self) -> bool:
        """Whether the documents are searched whatever the question."""
        return self.file_search is not None and self._is_required

    @property
    def functions(self) -> Functions:
        """The functions that the model is told of."""
        named = [tool["name"] for _, tool in self._named_tools() if tool["type"] == "function"]
        return Functions(
            tuple(
                (f"tools.{place}", tool.spec) for place, tool in enumerate(self.tools) if isinstance(tool, FunctionTool)
            ),
            "none" if self.tool_choice == "none" else "required" if self._is_required else "auto",
            tuple(named) or None,
        )

    @property
    def _is_required(self) -> bool:
        if isinstance(self.tool_choice, dict):
            return bool(self.tool_choice["type"] != ALLOWED or self.tool_choice["mode"] == "required")
        return self.tool_choice == "required"

    def _named_tools(self) -> list[tuple[str, dict[str, Any]]]:
        """What ``tool_choice`` names, each with its path."""
        if not isinstance(self.tool_choice, dict):
            return []
        if self.tool_choice["type"] != ALLOWED:
            return [("tool_choice", self.tool_choice)]
        return [(f"tool_choice.tools.{place}", tool) for place, tool in enumerate(self.tool_choice["tools"])]


class ResponseRequest(ResponseInput):
    """A request with the fields that ``fields.RESPONSE_FIELDS`` calls honoured."""

    model: Text
    background: bool | None = None
    include: list[Include] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    # There is at most one call, that of the file search.
    max_tool_calls: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    metadata: Metadata | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_logprobs: NumLogprobs | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("stream_options") is not None and data.get("stream") is not True:
            raise RequestInvalid("stream_options is only allowed when stream is true", "stream_options")
        return _sorted_out(data, RESPONSE_FIELDS)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.background and not self.is_stored:
            raise RequestInvalid("background needs store: a response that is not stored cannot be looked at", "store")
        if self.top_logprobs and not self.includes("message.output_text.logprobs"):
            raise RequestInvalid('top_logprobs needs include: ["message.output_text.logprobs"]', "top_logprobs")
        return self

    def includes(self, what: str) -> bool:
        """Whether ``what`` is to come with the response."""
        return what in (self.include or ())

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most probable tokens are told beside each token; None when not even its own is."""
        return (self.top_logprobs or 0) if self.includes("message.output_text.logprobs") else None

    @property
    def is_stored(self) -> bool:
        """Whether the response can be retrieved and gone on from."""
        return self.store is not False


class CountRequest(ResponseInput):
    """A request whose prompt is only counted."""

    model: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, data: object) -> object:
        return _sorted_out(data, COUNT_FIELDS)


def _sorted_out(data: object, table: Mapping[str, ChatField]) -> object:
    """The body with neutral fields taken away at every depth, and what is not supported refused by its path."""
    if not isinstance(data, dict):
        return data
    reasoning = data.get("reasoning")
    if isinstance(reasoning, dict):
        data = data | {"reasoning": {name: value for name, value in reasoning.items() if value is not None}}
    kept = without_idle_fields(data, table)
    if "input" in kept:
        kept["input"] = input_items(kept["input"])
    if kept.get("tools", 0) is None:
        del kept["tools"]
    if isinstance(kept.get("tools"), list):
        kept["tools"] = tools(kept["tools"])
    choice = kept.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(kind, str) and kind in TOOLS_REFUSED:
        raise FieldRefused("tool_choice", TOOLS_REFUSED[kind])
    if isinstance(kept.get("text"), dict):
        kept["text"] = without_idle_fields(kept["text"], TEXT_FIELDS, "text.")
    return kept
