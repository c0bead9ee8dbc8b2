"""Uploads on the wire, as OpenAI's clients send and read them."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from server.files.schemas import FileExpiry, FileId, FileObject, Purpose
from server.schemas import Text, WireModel


class NewUpload(WireModel):
    """A file that is going to come in parts."""

    bytes: Annotated[int, Field(ge=1)]
    filename: Annotated[Text, StringConstraints(pattern=r"\S", max_length=255)]
    mime_type: Annotated[Text, StringConstraints(max_length=255)]
    purpose: Purpose
    expires_after: FileExpiry | None = None


class CompleteUpload(WireModel):
    """The order of the parts, and the checksum of all of them together."""

    part_ids: Annotated[list[FileId], Field(min_length=1, max_length=10_000)]
    md5: Annotated[Text, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class UploadObject(BaseModel):
    """An upload; ``file`` is what became of it."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = None


class PartObject(BaseModel):
    """A part of an upload, on the disk."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
