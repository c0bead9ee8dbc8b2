"""The form that a reply is to have, as ``response_format`` asks for it."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from server.errors import RequestInvalid
from server.schemas import Text, WireModel

NAME = re.compile("[A-Za-z0-9_-]{1,64}")
# Any object, as OpenAI's JSON mode promises.
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def _plain(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("should have 1 to 64 characters, which are letters, digits, _ and -")
    return name


class JsonSchema(WireModel):
    """A schema under a name. ``strict`` changes nothing: every schema is kept to the letter, or refused."""

    name: Annotated[str, AfterValidator(_plain)]
    description: Text | None = None
    wanted: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(WireModel):
    """``text`` is no form at all, ``json_object`` any object, ``json_schema`` what is valid under the schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            word = "needs" if self.json_schema is None else "has no"
            raise RequestInvalid(
                f"response_format of type {self.type!r} {word} json_schema", "response_format.json_schema"
            )
        return self

    @property
    def schema_asked(self) -> tuple[Mapping[str, Any], str] | None:
        """The schema of the reply and the path of the field to blame for it; None where any text will do."""
        if self.type == "text":
            return None
        if self.json_schema is None or self.json_schema.wanted is None:
            return ANY_OBJECT, "response_format"
        return self.json_schema.wanted, "response_format.json_schema.schema"
