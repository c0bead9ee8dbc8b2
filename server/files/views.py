"""Files, uploads and vector stores in the shapes of the wire."""

from typing import Literal

from retrieval.passage import Cutting
from server.files.nouns import Batch, FileCounts, FileStatus, Hit, Part, StoredFile, StoreFile, Upload, VectorStore
from server.files.schemas import (
    BatchObject,
    CountsView,
    FileObject,
    FixedSize,
    LastError,
    OtherChunking,
    SearchHit,
    StaticChunking,
    StoreExpiry,
    StoreFileObject,
    TextContent,
    VectorStoreObject,
)
from server.files.upload_schemas import PartObject, UploadObject


def file_view(file: StoredFile) -> FileObject:
    """A file as its tenant sees it."""
    return FileObject(
        id=file.id,
        bytes=file.num_bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
    )


def upload_view(upload: Upload, file: StoredFile | None = None) -> UploadObject:
    """An upload, with the file it became."""
    return UploadObject(
        id=upload.id,
        bytes=upload.num_bytes,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.status.value,
        file=file_view(file) if file is not None else None,
    )


def part_view(part: Part) -> PartObject:
    """A part of an upload."""
    return PartObject(id=part.id, created_at=part.created_at, upload_id=part.upload_id)


def counts_view(counts: FileCounts) -> CountsView:
    """Files by status."""
    return CountsView(
        in_progress=counts.in_progress,
        completed=counts.completed,
        failed=counts.failed,
        cancelled=counts.cancelled,
        total=counts.total,
    )


def store_view(store: VectorStore, moment: float) -> VectorStoreObject:
    """A vector store as it is at ``moment``, in seconds since 1970."""
    status: Literal["in_progress", "completed", "expired"]
    if store.expires_at is not None and store.expires_at <= moment:
        status = "expired"
    else:
        status = "in_progress" if store.counts.in_progress else "completed"
    return VectorStoreObject(
        id=store.id,
        created_at=store.created_at,
        name=store.name,
        description=store.description,
        usage_bytes=store.usage_bytes,
        file_counts=counts_view(store.counts),
        status=status,
        expires_after=StoreExpiry(anchor="last_active_at", days=store.expires_days) if store.expires_days else None,
        expires_at=store.expires_at,
        last_active_at=store.last_active_at,
        metadata=dict(store.metadata),
    )


def store_file_view(file: StoreFile) -> StoreFileObject:
    """A file in a vector store."""
    error = LastError.model_validate({"code": file.error[0], "message": file.error[1]}) if file.error else None
    return StoreFileObject(
        id=file.file_id,
        created_at=file.created_at,
        usage_bytes=file.usage_bytes,
        vector_store_id=file.store_id,
        status=file.status.value,
        last_error=error,
        attributes=dict(file.attributes),
        chunking_strategy=_chunking(file.cutting),
    )


def _chunking(cutting: Cutting | None) -> OtherChunking | StaticChunking:
    if cutting is None:
        return OtherChunking()
    size = FixedSize(max_chunk_size_tokens=cutting.max_tokens, chunk_overlap_tokens=cutting.overlap_tokens)
    return StaticChunking(type="static", static=size)


def batch_view(batch: Batch) -> BatchObject:
    """A batch. It has failed when all of its files have."""
    counts = batch.counts
    if batch.is_cancelled:
        status = FileStatus.CANCELLED
    elif counts.in_progress:
        status = FileStatus.IN_PROGRESS
    else:
        status = FileStatus.FAILED if 0 < counts.total == counts.failed else FileStatus.COMPLETED
    return BatchObject(
        id=batch.id,
        created_at=batch.created_at,
        vector_store_id=batch.store_id,
        status=status.value,
        file_counts=counts_view(counts),
    )


def hit_view(hit: Hit) -> SearchHit:
    """A passage that was found."""
    return SearchHit(
        file_id=hit.file_id,
        filename=hit.filename,
        score=hit.score,
        attributes=dict(hit.attributes),
        content=[TextContent(text=hit.text)],
        document=hit.document_id,
        start_char=hit.start,
        end_char=hit.end,
        page=hit.page,
    )
