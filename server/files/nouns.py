"""What this package speaks of: files, stores, what stands in them, and what a search of them finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from retrieval.passage import Cutting

AttributeValue = str | float | bool
Attributes = Mapping[str, AttributeValue]


class FileStatus(StrEnum):
    """Where a file is on its way into a vector store."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class UploadStatus(StrEnum):
    """Where an upload in parts is."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it was sent. ``media_type`` is how it will be read, None if it cannot be, and ``refusal`` says why.

    ``number`` orders files by their coming. Times are seconds since 1970.
    """

    number: int
    id: str
    tenant: str
    filename: str
    purpose: str
    media_type: str | None
    refusal: str | None
    sha256: str
    num_bytes: int
    created_at: int
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that is about to be kept."""

    filename: str
    purpose: str
    media_type: str | None
    refusal: str | None
    expires_after_seconds: int | None


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that comes in parts. ``file_id`` is what became of it."""

    number: int
    id: str
    tenant: str
    filename: str
    purpose: str
    declared_type: str
    num_bytes: int
    created_at: int
    expires_at: int
    file_expires_after_seconds: int | None
    status: UploadStatus
    file_id: str | None
    part_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an upload."""

    id: str
    upload_id: str
    sha256: str
    num_bytes: int
    created_at: int


@dataclass(frozen=True, slots=True)
class FileCounts:
    """Files of a store or batch by status."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.in_progress + self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True)
class VectorStore:
    """A named set of files. ``expires_at`` follows its last use by ``expires_days``."""

    number: int
    id: str
    tenant: str
    name: str
    description: str | None
    metadata: Mapping[str, str]
    created_at: int
    last_active_at: int
    expires_days: int | None
    expires_at: int | None
    counts: FileCounts
    usage_bytes: int


@dataclass(frozen=True, slots=True)
class StoreFile:
    """A file in a vector store. ``error`` is (code, message) where the status is ``failed``; ``cutting`` is how its
    text is cut there, None between sentences as each question wants it."""

    number: int
    store_id: str
    file_id: str
    created_at: int
    status: FileStatus
    error: tuple[str, str] | None
    attributes: Attributes
    usage_bytes: int
    cutting: Cutting | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Files that were added to a store together."""

    number: int
    id: str
    store_id: str
    created_at: int
    is_cancelled: bool
    counts: FileCounts


@dataclass(frozen=True, slots=True)
class StoreDocument:
    """The document behind a file, and how the file stands in the store that it was found by (None without one).

    ``filename`` and ``attributes`` are the file's own, and so is ``cutting``, how its text is cut in that store:
    several files may share one document.
    """

    document_id: str
    file_id: str
    filename: str
    attributes: Attributes = field(default_factory=dict)
    vector_store_id: str | None = None
    cutting: Cutting | None = None


@dataclass(frozen=True, slots=True)
class RankingOptions:
    """``score_threshold``, from 0 to 1: what scores less is left out."""

    score_threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class Hit:
    """``text`` is the document's stored text from ``start`` to ``end``, in code points; ``score`` is from 0 to 1.

    ``page`` counts from 1 and is None for texts without pages.
    """

    file_id: str
    filename: str
    document_id: str
    attributes: Attributes
    score: float
    text: str
    start: int
    end: int
    page: int | None
