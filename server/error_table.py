"""From error class to HTTP: one table, one envelope (that of OpenAI), every refusal through it."""

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
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
    NeverFits,
    PromptTooLong,
    QueueFull,
)
from retrieval.durability import is_full
from retrieval.errors import (
    DocumentNotReady,
    FactNotPinned,
    PromptMemoryFull,
    UnknownDocument,
    UnknownFact,
    UnsupportedMediaType,
)
from retrieval.passage import DocumentStatus
from server.errors import (
    AnswerAborted,
    BodyEncoded,
    BodyTooLarge,
    ClientLeft,
    DeletionUnfinished,
    EvidenceTooLong,
    HostRefused,
    KeyRefused,
    KeysUnknown,
    NotReady,
    ReaderStalled,
    RequestInvalid,
    StorageFull,
    StreamRequired,
    UnknownModel,
)
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
from server.invalid_fields import CODES_BY_TYPE, invalid_fields
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
    BodyEncoded: Row(415, INVALID, "unsupported_media_type"),
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
    return tuple(sorted(codes | {*FRAMEWORK_CODES.values(), *CODES_BY_TYPE.values(), *OWN_CODES}))


def codes_by_status(status: int) -> tuple[str, ...]:
    """The codes that an error of this status may have."""
    codes = {row.code for row in (*TABLE.values(), UNEXPECTED) if row.status == status}
    if status == 400:
        codes |= {*CODES_BY_TYPE.values(), *OWN_CODES} - {"server_error", "http_error"}
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

    async def of_the_disk(request: Request, error: Exception) -> JSONResponse:
        if not is_full(error):
            raise error
        return await known(request, StorageFull())

    async def left(request: Request, _: Exception) -> JSONResponse:
        return await known(request, ClientLeft())

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        count(UNEXPECTED.code)
        # This reply is made outside all middleware, which therefore cannot add the id.
        headers = {"x-request-id": str(request.scope.get("fano_request_id", "")), "x-should-retry": "false"}
        return JSONResponse(envelope(error), status_code=500, headers=headers)

    for cls in TABLE:
        app.add_exception_handler(cls, known)
    for disk_error in (OSError, sqlite3.OperationalError):
        app.add_exception_handler(disk_error, of_the_disk)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(Exception, unexpected)


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
