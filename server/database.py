"""An SQLite file of the server: how it is opened, brought to the newest schema, read and changed."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from retrieval.durability import make_directory, sync_directory
from retrieval.errors import StoreInvalid

BUSY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Schema:
    """The steps that lead to it, which are only ever added at the end; ``user_version`` counts those that were taken.
    ``holds`` is what the file has, in words."""

    holds: str
    steps: tuple[str, ...]

    def version(self, connection: sqlite3.Connection, path: Path) -> int:
        """How many steps the file has taken, 0 if it is empty. Raises ``StoreInvalid`` for more than there are."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(self.steps):
            raise StoreInvalid(
                f"{path} was written by a newer version of this program (schema {version}, known are "
                f"{len(self.steps)}); use that version, or move the file away to start without {self.holds}"
            )
        return int(version)

    def migrate(self, connection: sqlite3.Connection, path: Path) -> None:
        """Take the steps that are left, all of them or none. Raises ``StoreInvalid``."""
        if self.version(connection, path) == len(self.steps):
            return
        with transaction(connection):
            # Looked at again, for two processes may have come at once.
            for number in range(self.version(connection, path), len(self.steps)):
                for statement in statements(self.steps[number]):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number + 1}")


def statements(step: str) -> Iterator[str]:
    """The statements of a script. ``executescript`` would end the transaction around it."""
    pending = ""
    for line in step.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    assert not pending.strip(), f"no end of {pending!r}"


def connect(path: Path) -> sqlite3.Connection:
    """A connection to a file that exists, with WAL and ``synchronous=FULL``: what a transaction committed is on the
    disk. Deleted content is overwritten. Threads may share it, one at a time."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A change of the file. An exception inside undoes all of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # Of some errors, a full disk among them, SQLite has undone the transaction itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class Database:
    """A file with one connection, behind a lock. For any thread."""

    def __init__(self, path: Path, schema: Schema) -> None:
        """Open the file, made if need be. Raises ``StoreInvalid`` for one that is damaged, none, or newer."""
        make_directory(path.parent)
        self._path = path
        self._lock = threading.RLock()
        self._depth = 0
        is_new = not path.exists()
        path.touch()
        self._connection: sqlite3.Connection | None = None
        with ExitStack() as undo:
            undo.callback(self.close)
            try:
                self._connection = connect(path)
                self._connection.execute("PRAGMA journal_mode = WAL")
                schema.migrate(self._connection, path)
            except sqlite3.OperationalError:  # No permission, no room: the file itself may be sound.
                raise
            except sqlite3.DatabaseError as error:
                raise StoreInvalid(
                    f"{path} cannot be read ({error}); restore it from a backup, or move it away to start without "
                    f"{schema.holds}"
                ) from error
            undo.pop_all()
        if is_new:
            sync_directory(path.parent)

    def close(self) -> None:
        """Close the connection; SQLite then empties and removes the journal. Idempotent."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The connection, to look at one state of the file."""
        with self._lock:
            assert self._connection is not None, "closed"
            yield self._connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction, or a part of the one that this thread is in. An exception inside undoes all of it."""
        with self._lock:
            assert self._connection is not None, "closed"
            if self._depth:
                yield self._connection
                return
            self._depth += 1
            try:
                with transaction(self._connection):
                    self.began(self._connection)
                    yield self._connection
            finally:
                self._depth -= 1

    @property
    def is_changing(self) -> bool:
        """Whether this thread, which has the lock, is in a transaction."""
        return self._depth > 0

    def began(self, connection: sqlite3.Connection) -> None:
        """What each transaction does first."""

    def checkpoint(self) -> None:
        """Move the journal into the file, so that what was deleted does not stay in it; or leave it where a reader is
        in the way, for the next time."""
        with self.read() as connection, suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def disk_bytes(self) -> int:
        """Bytes of the file and its journal."""
        total = 0
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                total += self._path.with_name(self._path.name + suffix).stat().st_size
        return total
