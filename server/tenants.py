"""Who is asking. Every key stands for one tenant; without any key only this machine can ask, as the default tenant."""

import hashlib
import hmac
import logging
import os
import secrets
import sqlite3
import threading
from pathlib import Path

from pydantic import SecretStr

from server.database import connect
from server.errors import KeyRefused, KeysUnknown
from server.keys import DEFAULT_TENANT, SCHEMA, Keys, KeysUnreadable, digest_of, unreadable_by_name
from server.settings import Settings, SettingsInvalid

logger = logging.getLogger(__name__)


class Tenants:
    """Knows the keys by their hashes only: that of the settings, and those in the data directory as they are now.

    A key that was added or revoked meanwhile counts from the next request on, because each one asks SQLite whether
    the file has changed (10 microseconds). Once any key is there, even a revoked one, a key is needed for as long
    as the process lives. For use from several threads.
    """

    def __init__(self, api_key: SecretStr | None, data_dir: Path) -> None:
        """Raises ``KeysUnreadable``."""
        self._path = Keys(data_dir).path
        self._lock = threading.Lock()
        # Places in the table are hashes under a secret of this process, so that the time that looking one up takes
        # tells nothing about the hashes of keys.
        self._secret = secrets.token_bytes(32)
        self._own = {} if api_key is None else self._entry(digest_of(api_key.get_secret_value()), DEFAULT_TENANT)
        self._entries = self._own
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, int, int] | None = None
        self._needs_key = api_key is not None
        self._look()

    @property
    def needs_key(self) -> bool:
        """Whether only those are served who bring a key; so it is where keys are and cannot be read."""
        try:
            return self._now()[0]
        except KeysUnknown:
            return True

    @property
    def has_usable_key(self) -> bool:
        """Whether there is a key that opens something. Raises ``KeysUnknown``."""
        return bool(self._now()[1])

    def tenant_of(self, authorization: str | None) -> str:
        """The tenant of an Authorization header; while there are no keys, anyone is the default tenant.

        Raises ``KeyRefused``, and ``KeysUnknown`` where nobody can tell whether a key is still good.
        """
        needs_key, entries = self._now()
        if not needs_key:
            return DEFAULT_TENANT
        scheme, _, key = (authorization or "").partition(" ")
        digest = digest_of(key.strip())
        known, tenant = entries.get(self._place(digest), (b"", ""))
        if scheme.lower() != "bearer" or not hmac.compare_digest(known, digest):
            raise KeyRefused
        return tenant

    def close(self) -> None:
        """Let go of the file; the next question opens it again."""
        with self._lock:
            self._let_go()

    def _now(self) -> tuple[bool, dict[bytes, tuple[bytes, str]]]:
        with self._lock:
            try:
                self._look()
            except KeysUnreadable as error:
                logger.error("%s", error)
                self._let_go()
                raise KeysUnknown from error
            return self._needs_key, self._entries

    def _look(self) -> None:
        """Read the keys again if they are not those that were read last."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            # Moved away. What it held opens nothing, and a key is needed all the same.
            if self._connection is not None:
                self._let_go()
                self._entries = self._own
            return
        except OSError as error:
            raise KeysUnreadable(
                f"keys cannot be looked for in {self._path.parent} ({error.strerror}); name a directory that this user "
                "may read and write as --data-dir or FANO_DATA_DIR"
            ) from error
        with unreadable_by_name(self._path):
            if self._connection is None or self._seen is None or self._seen[:2] != (status.st_dev, status.st_ino):
                self._let_go()
                self._connection = connect(self._path)
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            seen = (status.st_dev, status.st_ino, version)
            if seen != self._seen:
                self._entries = self._own | self._read(self._connection)
                self._seen = seen

    def _read(self, connection: sqlite3.Connection) -> dict[bytes, tuple[bytes, str]]:
        if SCHEMA.version(connection, self._path) == 0:
            return {}
        rows = connection.execute("SELECT digest, tenant, revoked_at FROM keys").fetchall()
        self._needs_key = self._needs_key or bool(rows)
        entries: dict[bytes, tuple[bytes, str]] = {}
        for digest, tenant, revoked_at in rows:
            if revoked_at is None:
                entries |= self._entry(digest, tenant)
        return entries

    def _entry(self, digest: bytes, tenant: str) -> dict[bytes, tuple[bytes, str]]:
        return {self._place(digest): (digest, tenant)}

    def _place(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=16).digest()

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._seen = None


def open_tenants(settings: Settings) -> Tenants:
    """The tenants of a server with these settings.

    Raises ``SettingsInvalid`` where other machines could reach it and no key protects the documents, and
    ``KeysUnreadable``.
    """
    tenants = Tenants(settings.api_key, settings.data_dir)
    if not settings.on_loopback and not tenants.has_usable_key:
        tenants.close()
        raise SettingsInvalid(
            f"host {settings.host!r} can be reached from other machines and no key protects the documents; make one "
            "with `fano keys add NAME`, set FANO_API_KEY to a long random string, or keep host 127.0.0.1"
        )
    return tenants
