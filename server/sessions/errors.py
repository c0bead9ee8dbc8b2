"""What can go wrong with named sessions, each error with what a person needs to mend it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SessionError(Exception):
    """Root of every error about a named session."""


class UnknownSession(SessionError):
    """No session of this tenant has the name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no session has the name {name!r}; GET /v1/sessions lists those there are")
        self.name = name


class SessionExists(SessionError):
    """The name that a fork is to have is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a session with the name {name!r} exists; delete it first, or choose another name")
        self.name = name


class SessionChanged(SessionError):
    """The session is no longer at the version that the change was made for."""

    def __init__(self, name: str, expected: int, found: int) -> None:
        super().__init__(
            f"session {name!r} is at version {found}, but the change was made for version {expected}; read it again"
        )
        self.name = name
        self.expected = expected
        self.found = found


class SessionDamaged(SessionError):
    """A file of a session is missing or altered. Nothing of it was used."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name} {reason}")
        self.path = path
        self.reason = reason


class SegmentDamaged(SessionDamaged):
    """A segment is missing, cut off, altered or not what the manifest says."""


class ManifestDamaged(SessionDamaged):
    """A manifest is torn, altered, or stands under the name of another session."""


class ManifestTooNew(SessionError):
    """A manifest was written by a later version of this program, which this one must not touch."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(
            f"{path} has format {found}, and this version reads up to {known}; start the version that wrote it, or "
            "move the sessions directory away"
        )
        self.path = path


class SessionStorageFull(SessionError):
    """There is no room for what was to be saved, by the budget or on the disk. Nothing was changed."""

    def __init__(self, reason: str, remedy: str = "delete sessions or raise FANO_SESSION_DISK_BYTES") -> None:
        super().__init__(f"{reason}; nothing was changed: {remedy}")


class SessionStorageDenied(SessionError):
    """The server may not write where its sessions are."""

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(
            f"{path} cannot be used: {cause.strerror}; let the server's user read and write it, or set FANO_DATA_DIR"
        )
        self.path = path


class SessionStorageFailed(SessionError):
    """The disk failed in another way."""

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(f"{path} cannot be used: {cause.strerror or cause}; check the disk")
        self.path = path


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Raise what the operating system refuses inside as the error that names path and remedy."""
    try:
        yield
    except OSError as error:
        path = Path(error.filename) if isinstance(error.filename, str) else directory
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"{path} cannot be written: {error.strerror}"
            raise SessionStorageFull(reason, "make room on the disk, or delete sessions") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SessionStorageDenied(path, error) from error
        raise SessionStorageFailed(path, error) from error
