"""Lists as OpenAI cuts them: pages between two ids, newest or oldest first."""

from collections.abc import Callable, Sequence
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Order = Literal["asc", "desc"]
Cursor = Annotated[str, Field(min_length=1, max_length=128)]
View = TypeVar("View")
Row = TypeVar("Row")


class CursorQuery(BaseModel):
    """Which page: at most ``limit`` items after the one with the id ``after``, or those that end right before
    ``before``; with both, those between, the nearest to ``after`` first."""

    model_config = ConfigDict(extra="forbid")

    after: Cursor | None = None
    before: Cursor | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Order = "desc"


class ListPage(BaseModel, Generic[View]):
    """One page; the next one follows ``after=last_id`` while ``has_more``."""

    object: Literal["list"] = "list"
    data: list[View]
    first_id: str | None
    last_id: str | None
    has_more: bool


def list_page(
    rows: Sequence[Row], has_more: bool, view: Callable[[Row], View], id_of: Callable[[Row], str]
) -> ListPage[View]:
    """The page of these rows."""
    return ListPage(
        data=[view(row) for row in rows],
        first_id=id_of(rows[0]) if rows else None,
        last_id=id_of(rows[-1]) if rows else None,
        has_more=has_more,
    )
