"""Functions that a model may call, as OpenAI's chat requests bring them, and the calls as messages carry them."""

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from server.schemas import Text, WireModel

MAX_TOOLS = 128
NAME = re.compile("[A-Za-z0-9_-]{1,64}")


def _plain(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("should have 1 to 64 characters, which are letters, digits, _ and -")
    return name


FunctionName = Annotated[str, AfterValidator(_plain)]


class FunctionSpec(WireModel):
    """``parameters`` is a JSON schema that every call's arguments are valid under, whether ``strict`` or not."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(WireModel):
    """A function is the only kind of tool in a chat."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(WireModel):
    """A function by its name."""

    name: FunctionName


class ToolChoice(WireModel):
    """Whether functions may, must or must not be called; with ``function`` this one must be."""

    type: Literal["none", "auto", "required", "function"]
    function: NamedFunction | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.type == "function") != (self.function is not None):
            raise ValueError("should name a function where its type is 'function', and nowhere else")
        return self


def _as_choice(given: object) -> object:
    return {"type": given} if isinstance(given, str) else given


Choice = Annotated[
    ToolChoice,
    BeforeValidator(_as_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                {
                    "type": "object",
                    "properties": {"type": {"const": "function"}, "function": {"type": "object"}},
                    "required": ["type", "function"],
                },
            ]
        }
    ),
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class CalledFunction(WireModel):
    """A function's name and its arguments as JSON text."""

    name: Text
    arguments: Text

    def told(self) -> dict[str, object]:
        """As chat templates write it: the arguments as the object they are, if they are one."""
        try:
            return {"name": self.name, "arguments": json.loads(self.arguments)}
        except ValueError:
            return {"name": self.name, "arguments": self.arguments}


class ToolCall(WireModel):
    """A call of an earlier reply."""

    id: Annotated[Text, StringConstraints(min_length=1, max_length=128)]
    type: Literal["function"] = "function"
    function: CalledFunction
