"""Why a request about files, uploads or vector stores is refused, each with what the client can do."""


class FilesError(Exception):
    """Root of the refusals of this package; ``param`` is the path of the field to blame, if there is one."""

    param: str | None = None


class UnknownFile(FilesError):
    """No file of this tenant has the id, or it has expired."""

    def __init__(self, file_id: str, param: str | None = None) -> None:
        super().__init__(f"no file has the id {file_id!r}; GET /v1/files lists those there are")
        self.param = param


class UnknownVectorStore(FilesError):
    """No vector store of this tenant has the id."""

    def __init__(self, store_id: str, param: str | None = None) -> None:
        super().__init__(f"no vector store has the id {store_id!r}; GET /v1/vector_stores lists those there are")
        self.param = param


class UnknownStoreFile(FilesError):
    """The vector store does not have the file."""

    def __init__(self, store_id: str, file_id: str) -> None:
        super().__init__(
            f"the vector store {store_id!r} has no file {file_id!r}; GET /v1/vector_stores/{store_id}/files lists "
            "those it has"
        )


class StoreFileNotReady(FilesError):
    """The file has no text yet, or never will."""

    def __init__(self, store_id: str, file_id: str, status: str, reason: str | None) -> None:
        told = f"{status}: {reason}" if reason else status
        super().__init__(f"the file {file_id!r} is not searchable in the vector store {store_id!r}: it is {told}")


class UnknownBatch(FilesError):
    """The vector store has no such batch."""

    def __init__(self, store_id: str, batch_id: str) -> None:
        super().__init__(f"the vector store {store_id!r} has no file batch {batch_id!r}")


class UnknownUpload(FilesError):
    """No upload of this tenant has the id."""

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"no upload has the id {upload_id!r}; begin one with POST /v1/uploads")


class UnknownPart(FilesError):
    """The upload has no such part."""

    def __init__(self, upload_id: str, part_id: str, param: str) -> None:
        super().__init__(f"the upload {upload_id!r} has no part {part_id!r}; name the ids that its parts were given")
        self.param = param


class UploadNotPending(FilesError):
    """The upload was completed or cancelled, or has expired."""

    def __init__(self, upload_id: str, status: str) -> None:
        super().__init__(f"the upload {upload_id!r} is {status} and takes nothing more; begin a new one")


class UploadMismatch(FilesError):
    """What was uploaded is not what was announced."""

    def __init__(self, param: str, told: str, found: str) -> None:
        super().__init__(f"{param} says {told}, but the parts have {found}; nothing was made of them")
        self.param = param


class VectorStoreExpired(FilesError):
    """The store was not used for as long as its ``expires_after`` allows."""

    def __init__(self, store_id: str, param: str | None = None) -> None:
        super().__init__(f"the vector store {store_id!r} has expired; make a new one from the same files")
        self.param = param


class FileUnanswerable(FilesError):
    """The file cannot be made a document. ``reason`` is ``unsupported_file``, ``invalid_file`` or ``server_error``."""

    def __init__(self, file_id: str, reason: str, message: str, param: str | None = None) -> None:
        super().__init__(f"the file {file_id!r} cannot be read: {message}")
        self.code = reason
        self.param = param
