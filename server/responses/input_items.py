"""The items of a response's input: messages, and what an earlier reply consisted of, which may come back.

An item is validated as one kind of object, so that the path of an error names no member of a union.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from server.answers.prompt import Turn
from server.chat.fields import FieldRefused, without_idle_fields
from server.chat.tool_schema import CalledFunction, FunctionName
from server.responses.fields import (
    FUNCTION_CALL_FIELDS,
    FUNCTION_OUTPUT_FIELDS,
    ITEMS_REFUSED,
    MESSAGE_FIELDS,
    PART_FIELDS,
    SEARCH_CALL_FIELDS,
)
from server.responses.items import call_view, new_id
from server.schemas import Text, WireModel, carried_by_utf8

Role = Literal["user", "assistant", "system", "developer"]
TEXT_TYPES = ("input_text", "output_text")


class ContentPart(WireModel):
    """A text, of either side, or a file: one that was uploaded, or its bytes in base64 with a name."""

    type: Literal["input_text", "output_text", "input_file"]
    text: Text | None = None
    file_id: Annotated[Text, StringConstraints(min_length=1, max_length=128)] | None = None
    file_data: Annotated[Text, StringConstraints(min_length=1)] | None = None
    filename: Annotated[Text, StringConstraints(pattern=r"\S", max_length=255)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.type in TEXT_TYPES:
            if self.text is None:
                raise ValueError(f"a part of type {self.type} has a text")
            if self.file_id is not None or self.file_data is not None or self.filename is not None:
                raise ValueError(f"a part of type {self.type} has no file_id, file_data or filename")
            return self
        if self.text is not None:
            raise ValueError("a part of type input_file has no text")
        if (self.file_id is None) == (self.file_data is None):
            raise ValueError("a part of type input_file has either file_id or file_data")
        if self.file_data is not None and self.filename is None:
            raise ValueError("file_data needs filename, whose ending says what it is")
        return self


def _as_parts(content: object) -> object:
    if isinstance(content, str):
        return [ContentPart(type="input_text", text=carried_by_utf8(content))]
    if not isinstance(content, list):
        raise ValueError("should be a text or a list of parts")
    return content


Content = Annotated[
    list[ContentPart],
    BeforeValidator(_as_parts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": ContentPart.model_json_schema()}]}),
]


ItemId = Annotated[Text, StringConstraints(min_length=1, max_length=128)]
# Of each type, what it has and what else it may have.
ITEM_FIELDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "message": (("role", "content"), ()),
    "file_search_call": (("queries",), ("status",)),
    "function_call": (("call_id", "name", "arguments"), ()),
    "function_call_output": (("call_id", "output"), ()),
}


class InputItem(WireModel):
    """A message; the file search of an earlier reply, which says nothing to the model; a call of a function by an
    earlier reply, and its output."""

    type: Literal["message", "file_search_call", "function_call", "function_call_output"] = "message"
    role: Role | None = None
    content: Content | None = None
    queries: list[Text] | None = None
    status: Literal["in_progress", "searching", "completed", "incomplete", "failed"] | None = None
    call_id: ItemId | None = None
    name: FunctionName | None = None
    arguments: Text | None = None
    output: Content | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        needed, others = ITEM_FIELDS[self.type]
        for field in ("role", "content", "queries", "status", "call_id", "name", "arguments", "output"):
            is_there = getattr(self, field) is not None
            if field in needed and not is_there:
                raise ValueError(f"an item of type {self.type} has {' and '.join(needed)}")
            if is_there and field not in (*needed, *others):
                raise ValueError(f"an item of type {self.type} has no {field}")
        if self.role != "user" and any(
            part.type == "input_file" for part in (*(self.content or ()), *(self.output or ()))
        ):
            raise ValueError("files come in messages of the user")
        return self

    @property
    def text(self) -> str:
        """The content as one text."""
        return _text_of(self.content)

    def view(self) -> dict[str, Any]:
        """The item as it is listed, with an id of its own: its first one was left behind with the reply that it came
        from. Of a file sent as such only its name stays."""
        if self.type == "file_search_call":
            searched = {"queries": list(self.queries or ()), "status": self.status or "completed", "results": None}
            return {"id": new_id("fs"), "type": self.type, **searched}
        if self.type == "function_call":
            return call_view(new_id("fc"), self.call_id or "", self.name or "", self.arguments or "", "completed")
        if self.type == "function_call_output":
            told = {"call_id": self.call_id, "output": _text_of(self.output), "status": "completed"}
            return {"id": new_id("fco"), "type": self.type, **told}
        head = {"id": new_id("msg"), "type": "message", "role": self.role, "status": "completed"}
        return head | {"content": [_part_view(part, self.role or "") for part in self.content or ()]}


def _text_of(parts: Sequence[ContentPart] | None) -> str:
    return "".join(part.text or "" for part in parts or ())


def turns_of(items: Sequence[dict[str, Any]]) -> list[Turn]:
    """What the model reads of items as they are listed, those of a response's output among them."""
    turns: list[Turn] = []
    for item in items:
        if item["type"] == "message":
            role = "system" if item["role"] == "developer" else item["role"]
            turns.append(Turn(role, "".join(part.get("text", "") for part in item["content"])))
        elif item["type"] == "function_call":
            function = CalledFunction(name=item["name"], arguments=item["arguments"])
            call = {"id": item["call_id"], "type": "function", "function": function.told()}
            # What was said before a call, and several calls, were one reply.
            before = turns.pop() if turns and turns[-1].role == "assistant" else Turn("assistant", "")
            calls = [each for _, value in before.more if isinstance(value, list) for each in value]
            turns.append(Turn("assistant", before.content, (("tool_calls", [*calls, call]),)))
        elif item["type"] == "function_call_output":
            turns.append(Turn("tool", item["output"], (("tool_call_id", item["call_id"]),)))
    return turns


def input_items(value: object) -> object:
    """``input`` of a request as a list of items without idle fields. Raises ``FieldRefused``; what is no item at all
    is left for validation to refuse."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    return [_item(item, f"input.{place}.") if isinstance(item, dict) else item for place, item in enumerate(value)]


def _item(item: dict[str, Any], path: str) -> dict[str, Any]:
    kind = item.get("type") or "message"
    if isinstance(kind, str) and kind in OTHER_ITEMS:
        kept = without_idle_fields(item, OTHER_ITEMS[kind], path)
        if isinstance(kept.get("output"), list):
            kept["output"] = _parts(kept["output"], f"{path}output.")
        return kept
    if kind != "message":
        raise FieldRefused(f"{path}type", ITEMS_REFUSED)
    kept = without_idle_fields(item, MESSAGE_FIELDS, path) | {"type": "message"}
    if isinstance(kept.get("content"), list):
        kept["content"] = _parts(kept["content"], f"{path}content.")
    return kept


OTHER_ITEMS = {
    "file_search_call": SEARCH_CALL_FIELDS,
    "function_call": FUNCTION_CALL_FIELDS,
    "function_call_output": FUNCTION_OUTPUT_FIELDS,
}


def _parts(parts: list[Any], path: str) -> list[Any]:
    return [_part(part, f"{path}{place}.") if isinstance(part, dict) else part for place, part in enumerate(parts)]


PARTS_REFUSED = {
    "input_image": "this model sees no images",
    "input_audio": "this model has no audio",
    "refusal": "this model makes no refusals",
}


def _part(part: dict[str, Any], path: str) -> dict[str, Any]:
    kind = part.get("type")
    if isinstance(kind, str) and kind in PARTS_REFUSED:
        raise FieldRefused(f"{path}type", PARTS_REFUSED[kind])
    return without_idle_fields(part, PART_FIELDS, path)


def _part_view(part: ContentPart, role: str) -> dict[str, Any]:
    if part.type == "input_file":
        shown = {"file_id": part.file_id, "filename": part.filename}
        return {"type": "input_file"} | {key: value for key, value in shown.items() if value is not None}
    if role == "assistant":
        return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": part.text}


# A request without any item asks nothing.
Items = Annotated[list[InputItem], Field(min_length=1)]
