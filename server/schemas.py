"""What goes over the wire. Requests refuse fields they do not know; every text is valid Unicode by type."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

Start = Literal["fresh", "document"]
ChatStart = Literal["fresh", "document", "prompt"]
Place = Literal["after", "both"]
MAX_DOCUMENTS = 64
MAX_QUESTION_CHARACTERS = 20_000
MAX_PASSAGES = 20
MAX_FACTS = 32
MAX_FACT_CHARACTERS = 2000
MAX_KEY_CHARACTERS = 200


def carried_by_utf8(text: str) -> str:
    """JSON may spell half a surrogate pair, which is no character and cannot be stored, sent or encoded."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"holds half a surrogate pair at character {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(carried_by_utf8)]
Recall = Literal["verbatim", "grounded", "free"]
DocumentRecall = Literal["verbatim", "grounded"]
DocumentId = Annotated[Text, StringConstraints(min_length=1, max_length=128)]
# Readings of documents are sessions under names that nobody can choose: they have a colon.
SESSION_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
SessionName = Annotated[str, StringConstraints(pattern=SESSION_NAME)]
QuestionText = Annotated[Text, StringConstraints(pattern=r"\S", max_length=MAX_QUESTION_CHARACTERS)]


class WireModel(BaseModel):
    """A request's object: exact types, finite numbers, no field that is not listed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextDocument(WireModel):
    """A document sent as JSON. ``read`` is whether the model reads it to its end, None is what the server does."""

    text: Annotated[Text, StringConstraints(min_length=1)]
    name: Annotated[Text, StringConstraints(pattern=r"\S", max_length=255)] = "document.txt"
    read: bool | None = None


class Fact(WireModel):
    """A text that stands in one of the documents asked and must be in the prompt; under ``key`` it is the value."""

    text: Annotated[Text, StringConstraints(pattern=r"\S", max_length=MAX_FACT_CHARACTERS)]
    key: Annotated[Text, StringConstraints(pattern=r"\S", max_length=MAX_KEY_CHARACTERS)] | None = None


Facts = Annotated[list[Fact], Field(max_length=MAX_FACTS)]


class ProgressView(BaseModel):
    """How far a document's current stage is."""

    stage: str
    done: int
    total: int
    seconds_left: float | None
    note: str | None = None


class ErrorView(BaseModel):
    """Why a document failed."""

    code: str
    message: str


class DocumentView(BaseModel):
    """A stored document."""

    id: str
    object: Literal["document"] = "document"
    name: str
    media_type: str
    status: str
    answerable: bool
    progress: ProgressView
    num_bytes: int
    num_characters: int | None
    num_tokens: int | None
    created_at: int
    error: ErrorView | None


class DocumentList(BaseModel):
    """One page of documents; the next one follows ``after=last_id`` while ``has_more``."""

    object: Literal["list"] = "list"
    data: list[DocumentView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DocumentText(BaseModel):
    """``text[start:end]`` of a document, in code points."""

    document: str
    start: int
    end: int
    num_characters: int
    text: str


class DocumentDeleted(BaseModel):
    """Nothing of the document is left."""

    id: str
    object: Literal["document.deleted"] = "document.deleted"
    deleted: Literal[True] = True


class SessionBytes(BaseModel):
    """Bytes of the tensors of a session's nearest state."""

    ssm_state: int
    conv_state: int
    kv: int
    kv_archive: int = 0


class SessionObject(BaseModel):
    """A session. ``status`` is the nearest place of its state: ``resident`` on the device, ``host``, ``saved`` on the
    disk, or ``tokens`` where only its history is kept, which will be read again. The state stands after
    ``state_tokens`` of ``num_tokens``. ``saved_version`` is the version whose state was saved; times are seconds
    since 1970."""

    name: str
    object: Literal["session"] = "session"
    num_tokens: int
    state_tokens: int
    status: str
    bytes: SessionBytes
    version: int
    saved_version: int | None
    checksum: str
    fingerprint: dict[str, str]
    documents: list[str]
    created_at: int
    updated_at: int


class SessionList(BaseModel):
    """One page of sessions by name; the next one follows ``after=last_id`` while ``has_more``."""

    object: Literal["list"] = "list"
    data: list[SessionObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class SessionFork(WireModel):
    """The name that the fork is to have."""

    to: SessionName


class SessionDeleted(BaseModel):
    """Nothing of the session is left."""

    name: str
    object: Literal["session.deleted"] = "session.deleted"
    deleted: Literal[True] = True


class CopyView(BaseModel):
    """Another place of nearly the same text as a source."""

    document: str
    name: str
    start: int
    end: int
    page: int | None


class SourceView(BaseModel):
    """A passage that the answer may rest on; ``text`` is ``document[start:end]``. ``also`` is where else nearly the
    same stands."""

    number: int
    document: str
    name: str
    start: int
    end: int
    text: str
    page: int | None
    score: float
    also: list[CopyView] = []


class CitationView(BaseModel):
    """A part of the answer that stands verbatim in a source; ``quote`` is ``document[start:end]``."""

    source: int
    document: str
    start: int
    end: int
    quote: str
    page: int | None
    answer_start: int
    answer_end: int


class ResidentBytes(BaseModel):
    """Device memory the request held at its end."""

    kv: int = 0
    ssm_state: int = 0
    conv_state: int = 0


class KvArchiveBytes(BaseModel):
    """Keys and values that left the window, in memory or on the disk, and the summaries they are chosen by."""

    kv_archive: int = 0
    kv_summaries: int = 0


class ArchiveBytes(KvArchiveBytes):
    """Memory beside the device: keys and values that left the window and the summaries they are chosen by, the text of
    the documents asked, and the index that was searched."""

    text: int = 0
    index: int = 0


class SpanView(BaseModel):
    """``document[start:end]``."""

    document: str
    start: int
    end: int


class RetrievalUsage(BaseModel):
    """What was searched for the request, and what of it stands in the prompt.

    ``reason`` is why documents were searched or not, of a fixed set; ``note`` says how, and what was left out;
    ``query`` what was searched for, where a turn was put together with what it rests on. ``within`` are the parts of
    documents that were not searched as a whole, ``fact_kinds`` the kinds of facts that keys could lead to, both null
    where nothing was limited so.
    """

    used: bool
    reason: str
    passages: int = 0
    facts: int = 0
    seconds: float = 0.0
    note: str | None = None
    query: str | None = None
    within: list[SpanView] | None = None
    fact_kinds: list[str] | None = None


class PrefixView(BaseModel):
    """Whether the prompt's beginning was remembered; ``reason`` is where it was kept, or why it was not there."""

    result: str
    reason: str


class ReadingUsage(BaseModel):
    """A prompt longer than the window that is read beside its answer: tokens before the question, those of them that
    were read before the request came, and those that were when its answer ended."""

    total: int
    cached: int
    processed: int


class FanoUsage(BaseModel):
    """The request's bill.

    ``start`` is what the answer began with: no memory, that of its document, or that of the whole prompt. ``reading``
    is what is read beside it, else null: its tokens are in ``prompt_tokens``, what it holds meanwhile is not in
    ``resident_bytes``. ``state_capacity_bits`` is the size of all memory held, ``state_recall_bits`` what of it the
    model's state alone recalled when that was measured, ``context_information_bits`` the surprisal of the prompt.
    """

    policy: dict[str, str | int]
    dtype: str
    resident_bytes: ResidentBytes
    archive_bytes: ArchiveBytes
    start: str
    state_capacity_bits: int
    state_recall_bits: float | None = None
    context_information_bits: float | None = None
    prefix: PrefixView | None = None
    reading: ReadingUsage | None = None
    retrieval: RetrievalUsage
    ttft_seconds: float | None


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens as OpenAI counts them, and the bill."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    fano: FanoUsage


class AnswerView(BaseModel):
    """The whole answer to a question."""

    answer: str
    found: bool
    sources: list[SourceView]
    citations: list[CitationView]
    finish_reason: str
    usage: Usage


class ErrorBody(BaseModel):
    """The inside of the error envelope."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """Every error reply."""

    error: ErrorBody


# The reply of a route that streams if the request says so.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The reply, or its events", "content": {"text/event-stream": {}}}
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error replies of a route, for its page in /docs."""
    return {status: {"model": ErrorEnvelope} for status in statuses}
