"""The items of a response's input: messages, and what an earlier reply consisted of, which may come back.

An item is validated as one kind of object, so that the path of an error names no member of a union.
"""

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from server.chat_fields import FieldRefused, without_idle_fields
from server.prompt import Turn
from server.responses.fields import ITEMS_REFUSED, MESSAGE_FIELDS, PART_FIELDS, SEARCH_CALL_FIELDS
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


class InputItem(WireModel):
    """A message, or the file search of an earlier reply, which says nothing to the model."""

    type: Literal["message", "file_search_call"] = "message"
    role: Role | None = None
    content: Content | None = None
    queries: list[Text] | None = None
    status: Literal["in_progress", "searching", "completed", "incomplete", "failed"] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.type == "message":
            if self.role is None or self.content is None:
                raise ValueError("a message has role and content")
            if self.queries is not None or self.status is not None:
                raise ValueError("a message has no queries")
            if self.role != "user" and any(part.type == "input_file" for part in self.content):
                raise ValueError("files come in messages of the user")
        elif self.queries is None or self.role is not None or self.content is not None:
            raise ValueError("a file_search_call has queries, and neither role nor content")
        return self

    @property
    def text(self) -> str:
        """The content as one text."""
        return "".join(part.text or "" for part in self.content or ())

    def turn(self) -> Turn | None:
        """What the model reads of it."""
        if self.role is None:
            return None
        return Turn("system" if self.role == "developer" else self.role, self.text)

    def view(self) -> dict[str, Any]:
        """The item as it is listed, with an id of its own. Of a file sent as such only its name stays."""
        if self.role is None:
            # Its first id was left behind with the reply that it came from.
            return {
                "id": f"fs_{secrets.token_urlsafe(18)}",
                "type": self.type,
                "queries": list(self.queries or ()),
                "status": self.status or "completed",
                "results": None,
            }
        item_id = f"msg_{secrets.token_urlsafe(18)}"
        head = {"id": item_id, "type": "message", "role": self.role, "status": "completed"}
        return head | {"content": [_part_view(part, self.role) for part in self.content or ()]}


def turns_of(items: Sequence[dict[str, Any]]) -> list[Turn]:
    """What the model reads of stored items, those of a response's output among them."""
    turns: list[Turn] = []
    for item in items:
        if item["type"] == "message":
            role = "system" if item["role"] == "developer" else item["role"]
            turns.append(Turn(role, "".join(part.get("text", "") for part in item["content"])))
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
    if kind == "file_search_call":
        return without_idle_fields(item, SEARCH_CALL_FIELDS, path)
    if kind != "message":
        raise FieldRefused(f"{path}type", ITEMS_REFUSED)
    kept = without_idle_fields(item, MESSAGE_FIELDS, path) | {"type": "message"}
    if isinstance(kept.get("content"), list):
        kept["content"] = [
            _part(part, f"{path}content.{place}.") if isinstance(part, dict) else part
            for place, part in enumerate(kept["content"])
        ]
    return kept


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
