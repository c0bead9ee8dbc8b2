"""What can go wrong in the archive, each error with what a person needs to mend it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval.passage import Document


class RetrievalError(Exception):
    """Root of every error this package raises for a reason outside its own code."""


class UnknownFact(RetrievalError):
    """The document has no fact of this id."""

    def __init__(self, fact_id: str) -> None:
        super().__init__(f"no fact {fact_id!r} in this document")
        self.fact_id = fact_id


class FactNotPinned(RetrievalError):
    """What was recognised in a text cannot be taken back, only pins can."""

    def __init__(self, fact_id: str, source: str) -> None:
        super().__init__(f"{fact_id} was found by the recogniser {source!r}; only pins can be unpinned")
        self.fact_id = fact_id


class UnknownDocument(RetrievalError):
    """No document of this tenant has the id."""

    def __init__(self, document_id: str) -> None:
        super().__init__(f"no document has the id {document_id!r}; GET /v1/documents lists those there are")
        self.document_id = document_id


class DocumentNotReady(RetrievalError):
    """The document exists but cannot be asked yet, or has failed. ``document`` carries the progress."""

    def __init__(self, document: "Document") -> None:
        detail = (
            f"failed: {document.error.message}; delete it and send it again"
            if document.error
            else f"{document.status.value} ({document.progress.stage} {document.progress.done} of "
            f"{document.progress.total}); ask again when it is answerable"
        )
        super().__init__(f"document {document.id!r} cannot be asked: {detail}")
        self.document = document


class UnsupportedMediaType(RetrievalError):
    """The file is of a kind that no parser here reads."""


class ParseFailed(RetrievalError):
    """The file could not be read as what it says it is. ``code`` is stable, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DataDirectoryInUse(RetrievalError):
    """Another process works on the data directory."""


class StoreInvalid(RetrievalError):
    """The store on disk is damaged or of a version this program cannot read."""


class VectorsInvalid(RetrievalError):
    """Vectors cannot be indexed or searched with: wrong dimension, not of unit length, ids not their own."""


class IndexUnavailable(RetrievalError):
    """The kind of index that was asked for cannot be had on this machine."""


class IndexDamaged(RetrievalError):
    """A file of a derived index is missing, altered or of another state of the store; it is to be rebuilt."""


class PromptMemoryFull(RetrievalError):
    """What is asked of long prompts at the moment takes the memory that there is for their archive."""

    def __init__(self, needed_bytes: int, used_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"the archive of this prompt needs up to {needed_bytes} bytes of pool 'prompts', of which {used_bytes} of "
            f"{max_bytes} are in use; send it again when others are done, or raise FANO_PROMPT_ARCHIVE_BYTES"
        )
        self.needed_bytes, self.used_bytes, self.max_bytes = needed_bytes, used_bytes, max_bytes
