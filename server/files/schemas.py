"""Files and vector stores on the wire, as OpenAI's clients send and read them."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from server.pages import CursorQuery
from server.schemas import Text, WireModel, carried_by_utf8

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
PURPOSES: tuple[str, ...] = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
Status = Literal["in_progress", "completed", "failed", "cancelled"]

LEAST_EXPIRY_SECONDS, MOST_EXPIRY_SECONDS = 3600, 2_592_000
MOST_BATCH_FILES = 2000
MOST_QUERIES = 16
MOST_VALUE_CHARACTERS = 512
MOST_QUERY_CHARACTERS = 4096

FileId = Annotated[Text, StringConstraints(min_length=1, max_length=128)]
Key = Annotated[Text, StringConstraints(min_length=1, max_length=64)]
# OpenAI's document lets these be left out, and does not let them be null.
LEFT_OUT_IF_NONE: Any = Field(default=None, exclude_if=lambda value: value is None)
ShortText = Annotated[Text, StringConstraints(max_length=MOST_VALUE_CHARACTERS)]
Name = Annotated[Text, StringConstraints(max_length=256)]


def _attribute_value(value: object) -> object:
    """Told at once: how a value failed to be each of four types helps nobody."""
    if isinstance(value, str):
        if len(value) > MOST_VALUE_CHARACTERS:
            raise ValueError(f"has {len(value)} characters, expected at most {MOST_VALUE_CHARACTERS}")
        return carried_by_utf8(value)
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError("expected a text, a number or a boolean")
    return value


AttributeValue = Annotated[
    Any,
    AfterValidator(_attribute_value),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 512}, {"type": "number"}, {"type": "boolean"}]}),
]
Attributes = Annotated[dict[Key, AttributeValue], Field(max_length=16)]
Metadata = Annotated[dict[Key, ShortText], Field(max_length=16)]
QueryText = Annotated[Text, StringConstraints(pattern=r"\S", max_length=MOST_QUERY_CHARACTERS)]


class FileExpiry(WireModel):
    """When a file goes: ``seconds`` after it came."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=LEAST_EXPIRY_SECONDS, le=MOST_EXPIRY_SECONDS)]


class FileQuery(BaseModel):
    """Which files of the list."""

    model_config = ConfigDict(extra="forbid")

    after: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str, Field(max_length=64)] | None = None


class FileObject(BaseModel):
    """A file. Its bytes are on the disk, which is all the processing there is: what becomes of it in a vector store is
    told there."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = LEFT_OUT_IF_NONE
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileDeleted(BaseModel):
    """The file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class AutoChunking(WireModel):
    """The server's own way to cut texts."""

    type: Literal["auto"]


class FixedSize(WireModel):
    """Pieces of at most ``max_chunk_size_tokens`` tokens of the served model; each begins ``chunk_overlap_tokens``, at
    most half as many, before the end of the one before it. They begin and end between words."""

    max_chunk_size_tokens: Annotated[int, Field(ge=100, le=4096)]
    chunk_overlap_tokens: Annotated[int, Field(ge=0, le=2048)]


class StaticChunking(WireModel):
    """Texts cut into pieces of a fixed size, which a search then finds."""

    type: Literal["static"]
    static: FixedSize


# Validated where it is used, so that an error's path is the path in the request and names no member of a union.
Chunking = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "properties": {"type": {"const": "auto"}}, "required": ["type"]},
                {
                    "type": "object",
                    "properties": {"type": {"const": "static"}, "static": FixedSize.model_json_schema()},
                    "required": ["type", "static"],
                },
            ]
        }
    ),
]


class StoreExpiry(WireModel):
    """When a store expires: ``days`` after its last use."""

    anchor: Literal["last_active_at"]
    days: Annotated[int, Field(ge=1, le=365)]


class NewVectorStore(WireModel):
    """A vector store, perhaps with files at once."""

    name: Name | None = None
    description: ShortText | None = None
    file_ids: Annotated[list[FileId], Field(max_length=MOST_BATCH_FILES)] | None = None
    chunking_strategy: Chunking | None = None
    expires_after: StoreExpiry | None = None
    metadata: Metadata | None = None


class VectorStoreUpdate(WireModel):
    """What is to change of a vector store; what is left out stays."""

    name: Name | None = None
    expires_after: StoreExpiry | None = None
    metadata: Metadata | None = None


class CountsView(BaseModel):
    """Files by status."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int


class VectorStoreObject(BaseModel):
    """A vector store. ``usage_bytes`` are those of the completed files, as sent."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    description: str | None
    usage_bytes: int
    file_counts: CountsView
    status: Literal["in_progress", "completed", "expired"]
    expires_after: StoreExpiry | None = LEFT_OUT_IF_NONE
    expires_at: int | None
    last_active_at: int
    metadata: dict[str, str]


class VectorStoreDeleted(BaseModel):
    """The store is gone; its files are not."""

    id: str
    object: Literal["vector_store.deleted"] = "vector_store.deleted"
    deleted: Literal[True] = True


class NewStoreFile(WireModel):
    """A file for a vector store."""

    file_id: FileId
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class StoreFileUpdate(WireModel):
    """The attributes that replace those there are."""

    attributes: Attributes | None


class StoreFileQuery(CursorQuery):
    """Which files of a store or batch."""

    filter: Status | None = None


class LastError(BaseModel):
    """Why a file is not in the store."""

    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class OtherChunking(BaseModel):
    """Texts are cut between sentences, which no fixed numbers describe."""

    type: Literal["other"] = "other"


class StoreFileObject(BaseModel):
    """A file in a vector store; its id is the file's."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    usage_bytes: int
    vector_store_id: str
    status: Status
    last_error: LastError | None
    attributes: dict[str, bool | int | float | str]
    chunking_strategy: OtherChunking | StaticChunking = OtherChunking()


class StoreFileDeleted(BaseModel):
    """The file is not in the store any more."""

    id: str
    object: Literal["vector_store.file.deleted"] = "vector_store.file.deleted"
    deleted: Literal[True] = True


class NewBatch(WireModel):
    """Files for a vector store: ``file_ids`` that share attributes, or ``files`` with their own."""

    file_ids: Annotated[list[FileId], Field(min_length=1, max_length=MOST_BATCH_FILES)] | None = None
    files: Annotated[list[NewStoreFile], Field(min_length=1, max_length=MOST_BATCH_FILES)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.file_ids is None) == (self.files is None):
            raise ValueError("send either file_ids or files")
        if self.files is not None and (self.attributes is not None or self.chunking_strategy is not None):
            raise ValueError("attributes and chunking_strategy belong into each of files")
        return self


class BatchObject(BaseModel):
    """Files that were put into a store together."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Status
    file_counts: CountsView


class TextContent(BaseModel):
    """A piece of text."""

    type: Literal["text"] = "text"
    text: str


class ContentPage(BaseModel):
    """All of a file's text."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[TextContent]
    has_more: Literal[False] = False
    next_page: None = None


class SearchRanking(WireModel):
    """``score_threshold`` leaves out what scores less. There is one ranking: naming it ``auto`` or as OpenAI calls its
    own changes nothing, and to do without one, which is only ever asked for to save time, saves none here."""

    ranker: Literal["none", "auto", "default-2024-11-15"] = "auto"
    score_threshold: Annotated[float, Field(ge=0, le=1, strict=False)] = 0.0


class StoreSearch(WireModel):
    """What to search a vector store for. Queries are searched as they are: ``rewrite_query`` allows rewriting, and
    ``search_query`` of the reply tells that nobody did."""

    query: QueryText | Annotated[list[QueryText], Field(min_length=1, max_length=MOST_QUERIES)]
    filters: dict[str, Any] | None = None
    max_num_results: Annotated[int, Field(ge=1, le=50)] = 10
    ranking_options: SearchRanking | None = None
    rewrite_query: bool = False


class SearchHit(BaseModel):
    """A passage; ``text`` of its content is the document's text from ``start_char`` to ``end_char``."""

    file_id: str
    filename: str
    score: float
    attributes: dict[str, bool | int | float | str]
    content: list[TextContent]
    document: str
    start_char: int
    end_char: int
    page: int | None


class SearchPage(BaseModel):
    """What was found, best first."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[SearchHit]
    has_more: Literal[False] = False
    next_page: None = None
