"""Vector stores: named sets of files, with when they were used last."""

import json
import sqlite3
from collections.abc import Mapping, Sequence

from server.files.database import FilesDatabase, Listed, Window
from server.files.errors import UnknownVectorStore, VectorStoreExpired
from server.files.file_table import new_id
from server.files.nouns import FileCounts, FileStatus, VectorStore

DAY_SECONDS = 86_400
_COUNTS = ", ".join(
    f"(SELECT count(*) FROM store_files sf WHERE sf.store_id = s.id AND sf.status = '{status}') AS {status}"
    for status in FileStatus
)
_QUERY = (
    f"SELECT s.*, {_COUNTS}, (SELECT coalesce(sum(b.num_bytes), 0) FROM store_files sf "
    "JOIN files f ON f.id = sf.file_id JOIN blobs b USING (sha256) "
    "WHERE sf.store_id = s.id AND sf.status = 'completed') AS usage_bytes FROM stores s"
)


class StoreTable:
    """Vector stores of all tenants. What a method changed is on the disk when it returns."""

    def __init__(self, database: FilesDatabase) -> None:
        self._database = database

    def add(
        self,
        tenant: str,
        name: str,
        description: str | None,
        metadata: Mapping[str, str],
        expires_days: int | None,
    ) -> str:
        """A new store without files; its id."""
        store_id, moment = new_id("vs_"), int(self._database.now())
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO stores (id, tenant, name, description, metadata, created_at, last_active_at, "
                "expires_days) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (store_id, tenant, name, description, json.dumps(dict(metadata)), moment, moment, expires_days),
            )
        return store_id

    def get(self, tenant: str, store_id: str, param: str | None = None) -> VectorStore:
        """One store. Raises ``UnknownVectorStore``."""
        with self._database.read() as connection:
            row = connection.execute(f"{_QUERY} WHERE s.id = ? AND tenant = ?", (store_id, tenant)).fetchone()
        if row is None:
            raise UnknownVectorStore(store_id, param)
        return _store(row)

    def page(self, tenant: str, window: Window) -> tuple[list[VectorStore], bool]:
        """The tenant's stores, and whether there are more."""
        listed = Listed(_QUERY, "tenant = ?", (tenant,), "s.id", "s.number", f"stores {tenant}")
        rows, has_more = self._database.page(listed, window)
        return [_store(row) for row in rows], has_more

    def update(self, tenant: str, store_id: str, changes: Mapping[str, object]) -> VectorStore:
        """Change ``name``, ``metadata`` (a mapping) or ``expires_days``, those that are named."""
        with self._database.transaction() as connection:
            self.get(tenant, store_id)
            for column, value in changes.items():
                assert column in ("name", "metadata", "expires_days"), column
                told = json.dumps(value) if column == "metadata" else value
                connection.execute(f"UPDATE stores SET {column} = ? WHERE id = ?", (told, store_id))
            return self.get(tenant, store_id)

    def delete(self, tenant: str, store_id: str) -> None:
        """Forget a store; its files stay."""
        with self._database.transaction() as connection:
            self.get(tenant, store_id)
            connection.execute("DELETE FROM stores WHERE id = ?", (store_id,))
        self._database.checkpoint()

    def use(self, tenant: str, store_ids: Sequence[str], param: str | None = None) -> None:
        """Note that the stores are used now; ``param`` is where a request names the first of them, by its number.

        Raises ``UnknownVectorStore`` and ``VectorStoreExpired``, and then none of them was used.
        """
        moment = int(self._database.now())
        with self._database.read() as connection:
            late: list[str] = []
            for place, store_id in enumerate(store_ids):
                where = f"{param}.{place}" if param is not None else None
                row = connection.execute(
                    "SELECT last_active_at, expires_days FROM stores WHERE id = ? AND tenant = ?", (store_id, tenant)
                ).fetchone()
                if row is None:
                    raise UnknownVectorStore(store_id, where)
                if is_expired(row["last_active_at"], row["expires_days"], moment):
                    raise VectorStoreExpired(store_id, where)
                if row["last_active_at"] != moment:
                    late.append(store_id)
            if late:
                with self._database.transaction():
                    connection.executemany(
                        "UPDATE stores SET last_active_at = ? WHERE id = ?", [(moment, each) for each in late]
                    )


def is_expired(last_active_at: int, expires_days: int | None, moment: int) -> bool:
    """Whether a store was not used for too long."""
    return expires_days is not None and last_active_at + expires_days * DAY_SECONDS <= moment


def _store(row: sqlite3.Row) -> VectorStore:
    days = row["expires_days"]
    return VectorStore(
        number=row["number"],
        id=row["id"],
        tenant=row["tenant"],
        name=row["name"],
        description=row["description"],
        metadata=json.loads(row["metadata"]),
        created_at=row["created_at"],
        last_active_at=row["last_active_at"],
        expires_days=days,
        expires_at=row["last_active_at"] + days * DAY_SECONDS if days is not None else None,
        counts=FileCounts(**{status.value: row[status.value] for status in FileStatus}),
        usage_bytes=row["usage_bytes"],
    )
