"""The tools that there are, ``file_search`` and the client's functions, and which of them are to be used."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from server.chat.fields import FieldRefused, without_idle_fields
from server.chat.tool_schema import MAX_TOOLS, FunctionName, FunctionSpec
from server.errors import RequestInvalid
from server.files.filters import parse_filter
from server.invalid_fields import invalid_fields
from server.responses.fields import FILE_SEARCH_FIELDS, FUNCTION_FIELDS, RANKING_FIELDS, TOOLS_REFUSED
from server.schemas import Text, WireModel

MOST_TOOLS = MAX_TOOLS
MAX_STORES = 64
MAX_RESULTS = 50


class RankingOptions(WireModel):
    """What scores less than ``score_threshold`` is neither shown to the model nor among the results."""

    score_threshold: Annotated[float, Field(ge=0, le=1)] | None = None


class FileSearchTool(WireModel):
    """The files of these vector stores that pass ``filters`` are searched for the question, if it asks anything."""

    type: Literal["file_search"]
    vector_store_ids: Annotated[list[Text], Field(min_length=1, max_length=MAX_STORES)]
    filters: dict[str, Any] | None = None
    max_num_results: Annotated[int, Field(ge=1, le=MAX_RESULTS)] | None = None
    ranking_options: RankingOptions | None = None

    @property
    def named(self) -> dict[str, Any]:
        """The tool as a choice names it."""
        return {"type": "file_search"}

    @property
    def score_threshold(self) -> float:
        """The least score."""
        return (self.ranking_options.score_threshold if self.ranking_options else None) or 0.0

    def view(self, max_num_results: int) -> dict[str, Any]:
        """The tool as the response says it was used."""
        return {
            "type": "file_search",
            "vector_store_ids": list(self.vector_store_ids),
            "filters": self.filters,
            "max_num_results": max_num_results,
            "ranking_options": {"ranker": "auto", "score_threshold": self.score_threshold},
        }


class FunctionTool(WireModel):
    """A function that the model may call. ``parameters`` is a JSON schema that every call's arguments are valid under,
    whether ``strict`` or not."""

    type: Literal["function"]
    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def named(self) -> dict[str, Any]:
        """The tool as a choice names it."""
        return {"type": "function", "name": self.name}

    @property
    def spec(self) -> FunctionSpec:
        """The function."""
        return FunctionSpec(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )

    def view(self, _: int) -> dict[str, Any]:
        """The tool as the response says it was used."""
        shown = {"type": "function", "name": self.name, "description": self.description}
        return shown | {"parameters": self.parameters, "strict": self.strict is not False}


AnyTool = FileSearchTool | FunctionTool


def tools(value: list[Any]) -> list[Any]:
    """``tools`` of a request. Raises ``RequestInvalid``, ``FieldRefused`` among them, with the path of the field."""
    return [_tool(each, f"tools.{place}") for place, each in enumerate(value)]


def _tool(tool: object, path: str) -> AnyTool:
    if not isinstance(tool, dict):
        raise RequestInvalid(f"{path} should be an object", path)
    kind = tool.get("type")
    if isinstance(kind, str) and kind in TOOLS_REFUSED:
        raise FieldRefused(f"{path}.type", TOOLS_REFUSED[kind])
    if kind not in ("file_search", "function"):
        told = f"is {kind!r}" if "type" in tool else "is missing"
        raise RequestInvalid(f"{path}.type {told}, expected 'file_search' or 'function'", f"{path}.type")
    is_function = kind == "function"
    kept = without_idle_fields(tool, FUNCTION_FIELDS if is_function else FILE_SEARCH_FIELDS, f"{path}.")
    if not is_function:
        if isinstance(kept.get("ranking_options"), dict):
            options = without_idle_fields(kept["ranking_options"], RANKING_FIELDS, f"{path}.ranking_options.")
            kept["ranking_options"] = options
        if kept.get("filters") is not None:
            parse_filter(kept["filters"], f"{path}.filters")
    try:
        # As one kind of object, so that the path of an error names no member of a union.
        return (FunctionTool if is_function else FileSearchTool).model_validate(kept)
    except ValidationError as error:
        located = [{**each, "loc": ("body", *path.split("."), *each["loc"])} for each in error.errors()]
        raise invalid_fields(located, "application/json") from None


CHOICES = ("none", "auto", "required")
ALLOWED = "allowed_tools"


def tool_choice(value: object) -> object:
    """``tool_choice`` as it came, where it means something."""
    if value is None or value in CHOICES:
        return value
    if isinstance(value, dict):
        if _is_named(value):
            return value
        if value.get("type") == ALLOWED and set(value) == {"type", "mode", "tools"}:
            named = value["tools"]
            if (
                value["mode"] in ("auto", "required")
                and isinstance(named, list)
                and named
                and all(map(_is_named, named))
            ):
                return value
            raise ValueError(
                "expected allowed_tools with mode auto or required, and with tools file_search or functions by name"
            )
    raise ValueError("expected none, auto, required, or an object of the type file_search, function or allowed_tools")


def _is_named(value: object) -> bool:
    """Whether a tool is named as a choice names it."""
    if value == {"type": "file_search"}:
        return True
    is_function = isinstance(value, dict) and value.get("type") == "function" and set(value) == {"type", "name"}
    return is_function and isinstance(value["name"], str)  # type: ignore[index]
