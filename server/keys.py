"""The keys of all tenants: one small SQLite file in the data directory, written by ``fano keys``, read by the server.

A key is 32 random bytes, so its SHA-256 tells nothing about it, and the hash is all that is kept. Rows of revoked
keys stay: they say when, and a data directory that once had a key never again serves whoever comes without one.
"""

import hashlib
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from retrieval.durability import is_full, make_directory, sync_directory
from retrieval.errors import StoreInvalid
from server.database import Schema, connect, transaction

FILE_NAME = "keys.sqlite3"
KEY_PREFIX = "fano-"
KEY_BYTES = 32
DEFAULT_TENANT = "default"
TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_NAME_CHARACTERS = 100

_FIRST = """
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
        tenant TEXT NOT NULL,
        name TEXT NOT NULL,
        last4 TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        revoked_at INTEGER
    );
    CREATE UNIQUE INDEX keys_by_name ON keys (name) WHERE revoked_at IS NULL;
"""
SCHEMA = Schema("keys", (_FIRST,))


class KeysError(Exception):
    """Something about the keys cannot be done; the message says what would help."""


class KeysUnreadable(KeysError):
    """The file of the keys is damaged, or of a later Fano."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key. Times are Unix seconds; ``revoked_at`` is None while it opens something."""

    id: str
    tenant: str
    name: str
    last4: str
    created_at: int
    revoked_at: int | None


class Keys:
    """The file of the keys. Every method opens it anew, and what it changed is durable when it returns."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / FILE_NAME

    def add(self, name: str, tenant: str = DEFAULT_TENANT) -> tuple[Key, str]:
        """A new key of ``tenant``, and its text, which is nowhere else from now on.

        Raises ``KeysError`` where a name makes no sense, or a key of that name is in use.
        """
        if not TENANT_NAME.fullmatch(tenant):
            raise KeysError(
                f"the tenant {tenant!r} must be 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
            )
        if not name.strip() or not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
            raise KeysError(f"the name {name!r} must be 1 to {MAX_NAME_CHARACTERS} printable characters")
        text = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
        key = Key(f"key_{secrets.token_hex(6)}", tenant, name, text[-4:], int(time.time()), None)
        with self._written() as connection:
            try:
                connection.execute(
                    "INSERT INTO keys (id, digest, tenant, name, last4, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                    (key.id, digest_of(text), tenant, name, key.last4, key.created_at),
                )
            except sqlite3.IntegrityError:
                raise KeysError(f"a key named {name!r} is in use; revoke it first, or choose another name") from None
        return key, text

    def list(self) -> list[Key]:
        """All keys, the oldest first, revoked ones among them."""
        if not self.path.exists():
            return []
        with self._opened() as connection:
            return [Key(*row) for row in connection.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY rowid")]

    def revoke(self, id_or_name: str) -> tuple[Key, bool]:
        """End a key, by its id or by the name of one in use. False if its id was revoked before.

        Raises ``KeysError`` where there is none.
        """
        if not self.path.exists():
            raise KeysError(f"there is no key {id_or_name!r}: {self.path.parent} has no keys yet")
        with self._written() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM keys WHERE id = ?1 OR (name = ?1 AND revoked_at IS NULL) ORDER BY id != ?1",
                (id_or_name,),
            ).fetchone()
            if row is None:
                raise KeysError(f"there is no key {id_or_name!r} in use; `fano keys list` shows those there are")
            changed = connection.execute(
                "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (int(time.time()), row[0])
            ).rowcount
            after = connection.execute(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (row[0],)).fetchone()
        return Key(*after), changed == 1

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        """A transaction on the file, which is made for this user alone if need be."""
        make_directory(self.path.parent)
        is_new = not self.path.exists()
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        if is_new:
            sync_directory(self.path.parent)
        with self._opened() as connection, transaction(connection):
            yield connection

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with unreadable_by_name(self.path), closing(connect(self.path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            SCHEMA.migrate(connection, self.path)
            yield connection


_COLUMNS = "id, tenant, name, last4, created_at, revoked_at"


def digest_of(text: str) -> bytes:
    """What is kept of a key. Any text has one, also what no header may carry."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


@contextmanager
def unreadable_by_name(path: Path) -> Iterator[None]:
    """What SQLite says of the file at ``path``, as ``KeysUnreadable``."""
    try:
        yield
    except StoreInvalid as error:
        raise KeysUnreadable(str(error)) from error
    except sqlite3.DatabaseError as error:
        if is_full(error):
            raise KeysError(f"the disk of {path} is full, and nothing was changed; make room on it") from error
        raise KeysUnreadable(
            f"the keys in {path} cannot be read ({error}); restore the file from a backup, or move it away and make "
            "new keys with `fano keys add`"
        ) from error
