"""The one tool that there is, ``file_search``, and which tool is to be used."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.chat_fields import FieldRefused, without_idle_fields
from server.files.filters import parse_filter
from server.responses.fields import FILE_SEARCH_FIELDS, RANKING_FIELDS, TOOLS_REFUSED
from server.schemas import Text, WireModel

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


def tools(value: list[Any]) -> list[Any]:
    """``tools`` of a request without idle fields. Raises ``FieldRefused`` and what a filter raises."""
    return [_tool(each, f"tools.{place}.") if isinstance(each, dict) else each for place, each in enumerate(value)]


def _tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    kind = tool.get("type")
    if isinstance(kind, str) and kind in TOOLS_REFUSED:
        raise FieldRefused(f"{path}type", TOOLS_REFUSED[kind])
    kept = without_idle_fields(tool, FILE_SEARCH_FIELDS, path)
    if isinstance(kept.get("ranking_options"), dict):
        kept["ranking_options"] = without_idle_fields(
            kept["ranking_options"], RANKING_FIELDS, f"{path}ranking_options."
        )
    if kept.get("filters") is not None:
        parse_filter(kept["filters"], f"{path}filters")
    return kept


CHOICES = ("none", "auto", "required")


def tool_choice(value: object) -> object:
    """``tool_choice`` as it came, where it means something."""
    if value is None or value in CHOICES:
        return value
    if isinstance(value, dict):
        if value == {"type": "file_search"}:
            return value
        if value.get("type") == "allowed_tools" and set(value) == {"type", "mode", "tools"}:
            if value["mode"] in ("auto", "required") and value["tools"] == [{"type": "file_search"}]:
                return value
            raise ValueError("allowed_tools with mode auto or required, and the one tool file_search")
    raise ValueError("none, auto, required, or an object of the type file_search or allowed_tools")
