"""From error class to HTTP: one table, one envelope (that of OpenAI), every refusal through it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from model.errors import (
    ArchiveFull,
    ChatTemplateMissing,
    ChatTemplateRejected,
    ConstraintFailed,
    DeadlineExceeded,
    EngineDraining,
    EngineStopped,
    GenerationFailed,
    HostBudgetExceeded,
    InvalidRequest,
    ModelError,
    NeverFits,
    PromptTooLong,
    QueueFull,
)
from retrieval.errors import (
    DocumentNotReady,
    FactNotPinned,
    PromptMemoryFull,
    UnknownDocument,
    UnknownFact,
    UnsupportedMediaType,
)
from retrieval.passage import DocumentStatus
from server.files.errors import (
    FileUnanswerable,
    StoreFileNotReady,
    UnknownBatch,
    UnknownFile,
    UnknownPart,
    UnknownStoreFile,
    UnknownUpload,
    UnknownVectorStore,
    UploadMismatch,
    UploadNotPending,
    VectorStoreExpired,
)
from server.responses.errors import (
    NotCancellable,
    ResponseFailed,
    ResponseNotStored,
    ResponseUnderWay,
    UnknownResponse,
)
from server.sessions.errors import (
    SessionChanged,
    SessionDamaged,
    SessionError,
    SessionExists,
    SessionStorageDenied,
    SessionStorageFailed,
    SessionStorageFull,
    UnknownSession,
)
from server.sessions.refusals import (
    DocumentInUse,
    SessionBusy,
    SessionFingerprint,
    SessionNotSaved,
    SessionOfDocument,
    SessionPolicy,
    SessionReading,
)


class RequestInvalid(Exception):
    """A request cannot be served as it is; ``param`` is the dotted path of the field to blame."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class StreamRequired(Exception):
    """So much of a prompt is to be read that whoever waits for the whole reply is likely to give up before it comes."""

    param = "stream"

    def __init__(self, num_tokens: int, most: int, seconds: float | None) -> None:
        self.num_tokens, self.most, self.seconds = num_tokens, most, seconds
        takes = "takes a while" if seconds is None else f"takes about {ceil(seconds)} seconds at the pace of late"
        super().__init__(
            f"{num_tokens} tokens of the prompt are to be read, which {takes}, and more than {most} are read for "
            "streams alone; send stream: true, which also tells how far it is, or raise FANO_MAX_WHOLE_PROMPT_TOKENS"
        )


class KeyRefused(Exception):
    """No key came with the request, or a wrong one."""

    def __init__(self) -> None:
        super().__init__("a valid key is needed: send the header Authorization: Bearer KEY")


class KeysUnknown(Exception):
    """Nobody can tell which keys are good: what the server keeps of them cannot be read."""

    def __init__(self) -> None:
        super().__init__("the server cannot read its keys at the moment; its log says why")


class UnknownModel(Exception):
    """The request names a model that is not served here."""

    param = "model"

    def __init__(self, model: str, served: str) -> None:
        super().__init__(f"the model {model!r} is not served here; use {served!r}")


class EvidenceTooLong(Exception):
    """Not even the best passage fits the window together with the question and the answer."""

    def __init__(self, num_tokens: int, max_tokens: int, limit_tokens: int) -> None:
        self.num_tokens, self.max_tokens, self.limit_tokens = num_tokens, max_tokens, limit_tokens
        super().__init__(
            f"question and best passage have {num_tokens} tokens and {max_tokens} more were asked for, but evidence, "
            f"question and answer share {limit_tokens} tokens; shorten the question or lower max_tokens"
        )


class FactsTooLong(EvidenceTooLong):
    """The facts that a request brings do not fit the window together with the question and the answer."""

    def __init__(self, param: str, num_tokens: int, max_tokens: int, limit_tokens: int) -> None:
        self.param = param
        Exception.__init__(
            self,
            f"question and {param} have {num_tokens} tokens and {max_tokens} more were asked for, but facts, question "
            f"and answer share {limit_tokens} tokens; send fewer or shorter facts, or lower max_tokens",
        )


class HostRefused(Exception):
    """Without a key the server answers this machine alone, and the request came by way of another name or site."""

    def __init__(self, header: str, value: str) -> None:
        super().__init__(
            f"the header {header} is {value!r}, but without an API key only localhost is served, so that no web page "
            "can reach the documents; use http://127.0.0.1, or make a key with `fano keys add NAME`"
        )


class BodyTooLarge(HTTPException):
    """More bytes came, or were announced, than may. An HTTPException so that body readers let it pass."""

    def __init__(self, what: str, limit: int, setting: str, unit: str = "bytes") -> None:
        message = f"{what} has more than {limit} {unit}; send less or raise {setting}"
        super().__init__(status_code=413, detail=message)

    def __str__(self) -> str:
        return self.detail


class StorageFull(Exception):
    """The disk has no room for what was sent."""

    def __init__(self) -> None:
        super().__init__("the server's disk is full; nothing of the document was kept")


class DeletionUnfinished(StorageFull):
    """The disk has no room for what deleting needs. ``is_begun`` is whether the document is unknown from now on."""

    def __init__(self, is_begun: bool) -> None:
        what = "not all of the document is off the disk yet" if is_begun else "nothing was deleted"
        Exception.__init__(self, f"the server's disk is full, and {what}; make room on it and delete it again")


class NotReady(Exception):
    """The server is up but its model and library do not stand yet."""

    retry_after_seconds = 2

    def __init__(self, reason: str) -> None:
        super().__init__(f"the server is not ready: {reason}")


class AnswerAborted(Exception):
    """The generation was ended before the answer was complete."""

    def __init__(self) -> None:
        super().__init__("the answer was cut off because the server is shutting down; send the request again")


class ReaderStalled(ModelError):
    """The client keeps the connection but takes nothing of its answer, which holds memory that others wait for."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"nothing of the answer was read for {seconds:g} seconds, so it was ended; read faster, or raise "
            "FANO_STALLED_READER_SECONDS"
        )


class ClientLeft(Exception):
    """The client closed the connection; the reply reaches nobody and the status is for the log."""

    def __init__(self) -> None:
        super().__init__("the client closed the connection")


@dataclass(frozen=True, slots=True)
class Row:
    """What an error is over HTTP: status, and the envelope's ``type`` and ``code``."""

    status: int
    type: str
    code: str


INVALID = "invalid_request_error"
TABLE: Mapping[type[Exception], Row] = {
    RequestInvalid: Row(400, INVALID, "invalid_value"),
    InvalidRequest: Row(400, INVALID, "invalid_value"),
    ChatTemplateMissing: Row(400, INVALID, "no_chat_template"),
    ChatTemplateRejected: Row(400, INVALID, "invalid_value"),
    ConstraintFailed: Row(400, INVALID, "invalid_value"),
    PromptTooLong: Row(400, INVALID, "context_length_exceeded"),
    NeverFits: Row(400, INVALID, "never_fits"),
    EvidenceTooLong: Row(400, INVALID, "context_length_exceeded"),
    StreamRequired: Row(400, INVALID, "stream_required"),
    KeyRefused: Row(401, "authentication_error", "invalid_api_key"),
    HostRefused: Row(403, "permission_error", "host_not_allowed"),
    UnknownDocument: Row(404, INVALID, "document_not_found"),
    UnknownFact: Row(404, INVALID, "fact_not_found"),
    FactNotPinned: Row(409, INVALID, "fact_not_pinned"),
    UnknownModel: Row(404, INVALID, "model_not_found"),
    UnknownSession: Row(404, INVALID, "session_not_found"),
    UnknownResponse: Row(404, INVALID, "response_not_found"),
    ResponseFailed: Row(400, INVALID, "response_failed"),
    ResponseUnderWay: Row(409, INVALID, "response_under_way"),
    NotCancellable: Row(400, INVALID, "not_cancellable"),
    ResponseNotStored: Row(507, "server_error", "storage_full"),
    UnknownFile: Row(404, INVALID, "file_not_found"),
    UnknownVectorStore: Row(404, INVALID, "vector_store_not_found"),
    UnknownStoreFile: Row(404, INVALID, "file_not_found"),
    UnknownBatch: Row(404, INVALID, "file_batch_not_found"),
    UnknownUpload: Row(404, INVALID, "upload_not_found"),
    UnknownPart: Row(400, INVALID, "part_not_found"),
    UploadNotPending: Row(400, INVALID, "upload_not_pending"),
    UploadMismatch: Row(400, INVALID, "upload_mismatch"),
    VectorStoreExpired: Row(400, INVALID, "vector_store_expired"),
    FileUnanswerable: Row(400, INVALID, "invalid_file"),
    StoreFileNotReady: Row(400, INVALID, "file_not_ready"),
    SessionOfDocument: Row(400, INVALID, "session_of_document"),
    SessionExists: Row(409, INVALID, "session_exists"),
    SessionChanged: Row(409, INVALID, "session_changed"),
    SessionBusy: Row(409, INVALID, "session_busy"),
    SessionPolicy: Row(409, INVALID, "session_policy"),
    SessionFingerprint: Row(409, INVALID, "session_fingerprint"),
    SessionDamaged: Row(409, INVALID, "session_damaged"),
    SessionNotSaved: Row(409, INVALID, "session_not_saved"),
    SessionReading: Row(409, INVALID, "session_reading"),
    DocumentInUse: Row(409, INVALID, "document_in_use"),
    DocumentNotReady: Row(409, INVALID, "document_not_ready"),
    ReaderStalled: Row(408, INVALID, "reader_stalled"),
    BodyTooLarge: Row(413, INVALID, "too_large"),
    UnsupportedMediaType: Row(415, INVALID, "unsupported_media_type"),
    QueueFull: Row(429, "rate_limit_error", "queue_full"),
    ClientLeft: Row(499, INVALID, "client_left"),
    GenerationFailed: Row(500, "server_error", "generation_failed"),
    SessionStorageDenied: Row(500, "server_error", "session_storage_denied"),
    SessionStorageFailed: Row(500, "server_error", "session_storage_failed"),
    KeysUnknown: Row(503, "server_error", "keys_unknown"),
    NotReady: Row(503, "server_error", "not_ready"),
    EngineDraining: Row(503, "server_error", "draining"),
    EngineStopped: Row(503, "server_error", "engine_stopped"),
    AnswerAborted: Row(503, "server_error", "draining"),
    DeadlineExceeded: Row(504, "server_error", "deadline_exceeded"),
    DeletionUnfinished: Row(507, "server_error", "deletion_unfinished"),
    StorageFull: Row(507, "server_error", "storage_full"),
    SessionStorageFull: Row(507, "server_error", "session_storage_full"),
    PromptMemoryFull: Row(507, "server_error", "prompt_memory_full"),
    HostBudgetExceeded: Row(507, "server_error", "session_memory_full"),
    ArchiveFull: Row(507, "server_error", "archive_full"),
}
UNEXPECTED = Row(500, "server_error", "internal_error")

# What errors that name a code of their own may name.
OWN_CODES = ("invalid_json", "unsupported_field", "unsupported_value", "unsupported_route", "unsupported_file",
             "server_error", "http_error")  # fmt: skip
# Refusals that the framework makes itself.
FRAMEWORK_CODES = {400: "invalid_body", 404: "unknown_route", 405: "method_not_allowed", 413: "too_large"}


def own_faults() -> tuple[str, ...]:
    """The codes of errors that are no mistake of a client: the server's own, and that too much is asked of it."""
    return tuple(sorted({row.code for row in (*TABLE.values(), UNEXPECTED) if row.status >= 500 or row.status == 429}))


def refusal_codes() -> tuple[str, ...]:
    """All codes that an error may have: those of the table, of what is wrong with a body, and of the framework."""
    codes = {row.code for row in (*TABLE.values(), UNEXPECTED)}
    return tuple(sorted(codes | {*FRAMEWORK_CODES.values(), *_CODES_BY_TYPE.values(), *OWN_CODES}))


def codes_by_status(status: int) -> tuple[str, ...]:
    """The codes that an error of this status may have."""
    codes = {row.code for row in (*TABLE.values(), UNEXPECTED) if row.status == status}
    if status == 400:
        codes |= {*_CODES_BY_TYPE.values(), *OWN_CODES} - {"server_error", "http_error"}
    return tuple(sorted(codes | {code for at, code in FRAMEWORK_CODES.items() if at == status}))


def row_of(error: Exception) -> Row:
    """The table's row for the nearest class of the error."""
    for cls in type(error).__mro__:
        if cls in TABLE:
            row = TABLE[cls]
            return Row(row.status, row.type, getattr(error, "code", row.code))
    return UNEXPECTED


def is_known(error: Exception) -> bool:
    """Whether the table has a row for the error; any other is a defect."""
    return row_of(error) is not UNEXPECTED


def envelope(error: Exception) -> dict[str, Any]:
    """The body that tells of ``error``: OpenAI's shape, with the progress of a document that is not ready."""
    row = row_of(error)
    message = "something failed inside the server" if row is UNEXPECTED else str(error)
    param = getattr(error, "param", None)
    if isinstance(error, InvalidRequest) and str(param).startswith("policy."):
        param = f"fano.{param}"  # where a request names its policy
    inner: dict[str, Any] = _inner(message, row.type, param, row.code)
    if isinstance(error, DocumentNotReady):
        document = error.document
        failed = document.status is DocumentStatus.FAILED
        inner["code"] = "document_failed" if failed else row.code
        inner["progress"] = {
            "stage": document.progress.stage,
            "done": document.progress.done,
            "total": document.progress.total,
            "seconds_left": document.progress.seconds_left,
        }
    return {"error": inner}


def respond(error: Exception) -> JSONResponse:
    """The reply that refuses because of ``error``."""
    return JSONResponse(envelope(error), status_code=row_of(error).status, headers=_headers(error))


def install_error_handlers(app: FastAPI, count: Callable[[str], None]) -> None:
    """Answer every error of the table, of validation and of the framework in the envelope; ``count`` gets the code."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        count(row_of(error).code)
        return respond(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        count("invalid_value")
        return respond(invalid_fields(error.errors(), request.headers.get("content-type")))

    async def framework(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = FRAMEWORK_CODES.get(error.status_code, "http_error")
        count(code)
        body = _inner(_FRAMEWORK_WORDS.get(error.status_code, str(error.detail)), INVALID, None, code)
        return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        count(UNEXPECTED.code)
        # This reply is made outside all middleware, which therefore cannot add the id.
        headers = {"x-request-id": str(request.scope.get("fano_request_id", "")), "x-should-retry": "false"}
        return JSONResponse(envelope(error), status_code=500, headers=headers)

    for cls in TABLE:
        app.add_exception_handler(cls, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(Exception, unexpected)


def invalid_fields(errors: Sequence[Mapping[str, Any]], content_type: str | None) -> RequestInvalid:
    """Validation errors as one: the first is blamed, the next ones are told, each with a value that is short.

    Every error's ``loc`` begins with the part of the request: body, query or path.
    """
    # A body that two dependencies read is reported twice.
    errors = list({(each["loc"], each["type"]): each for each in errors}.values())
    first = errors[0]
    if first["type"] == "json_invalid":
        return RequestInvalid(
            f"the body is not valid JSON: {first.get('ctx', {}).get('error', '')}", None, "invalid_json"
        )
    if list(first["loc"]) == ["body"] and "json" not in (content_type or ""):
        return RequestInvalid("send a JSON object with the header Content-Type: application/json", None, "invalid_body")
    told = [f"{_path(each['loc']) or 'the body'} {_words(each)}" for each in errors[:3]]
    more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    code = _CODES_BY_TYPE.get(first["type"], "invalid_value")
    return RequestInvalid("; ".join(told) + more, _path(first["loc"]), code)


# The longest text of a client that an error repeats.
SHOWN_CHARACTERS = 64

_CODES_BY_TYPE = {"extra_forbidden": "unknown_field", "missing": "missing_field"}

_FRAMEWORK_WORDS = {
    400: "the body is not valid JSON in UTF-8",
    404: "there is no such route; GET /docs lists those there are",
    405: "this route does not know that method; GET /docs lists what it knows",
}


def _inner(message: str, error_type: str, param: str | None, code: str) -> dict[str, Any]:
    # What a client sent may hold lone surrogates, and an error about it must still be UTF-8.
    message = message.encode("utf-8", "backslashreplace").decode()
    param = param.encode("utf-8", "backslashreplace").decode() if param is not None else None
    return {"message": message, "type": error_type, "param": param, "code": code}


def _headers(error: Exception) -> dict[str, str]:
    headers: dict[str, str] = {}
    seconds = getattr(error, "retry_after_seconds", None)
    if isinstance(error, DocumentNotReady):
        failed = error.document.status is DocumentStatus.FAILED
        if failed:
            headers["x-should-retry"] = "false"
        elif error.document.progress.seconds_left is not None:
            seconds = ceil(error.document.progress.seconds_left)
    if isinstance(error, DeadlineExceeded):
        # The official clients send a 504 again at once, and it would take as long again.
        headers["x-should-retry"] = "false"
    if isinstance(error, SessionError) and seconds is None and row_of(error).status == 409:
        # The official clients send a 409 again, and nothing would have changed.
        headers["x-should-retry"] = "false"
    if seconds is not None:
        headers["Retry-After"] = str(max(1, int(seconds)))
    if isinstance(error, KeyRefused):
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def _path(location: tuple[int | str, ...]) -> str | None:
    """``("body", "messages", 0, "content")`` as ``messages.0.content``."""
    return ".".join(str(part) for part in location[1:]) or None


def _words(error: Mapping[str, Any]) -> str:
    """What is wrong with the field, what was expected and what to do, after its path."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "is not a field that is known here; leave it out"
    if kind == "missing":
        return "is missing; add it"
    if kind == "string_pattern_mismatch":
        return "is blank, expected text"
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length") if kind == "too_short" else context.get("max_length")
        side = "at least" if kind == "too_short" else "at most"
        return f"has {context.get('actual_length')} items, expected {side} {bound}"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    expected = message if message[:1].isupper() else f"expected {message}"
    if expected is message:
        expected = message[:1].lower() + message[1:]
    return f"is {_shown(error.get('input'))}, {expected}"


def _shown(value: object) -> str:
    """A number or a short text as it was sent; of anything longer only its kind, for it may be a whole document."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= SHOWN_CHARACTERS else f"a text of {len(value)} characters"
    return "an array" if isinstance(value, list) else "an object"
