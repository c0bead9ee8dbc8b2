"""Deleting a document for good: from the library, and from every session and state that holds something of it."""

import sqlite3
from typing import TYPE_CHECKING

import anyio.to_thread

from retrieval.durability import is_full
from server.errors import DeletionUnfinished
from server.sessions.readings import Readings
from server.sessions.traces import Traces

if TYPE_CHECKING:
    from retrieval.library import Library


class Eraser:
    """Takes documents away wherever something of them is kept."""

    def __init__(self, library: "Library", readings: Readings, traces: Traces) -> None:
        self._library = library
        self._readings = readings
        self._traces = traces

    async def erase(self, tenant: str, document_id: str, cascade: bool) -> None:
        """Delete the document and its reading; with ``cascade`` the sessions that contain it as well.

        Raises:
            UnknownDocument: there is none of this tenant.
            DocumentInUse: sessions contain it, and are not to go.
            SessionBusy: one of these is in use.
            DeletionUnfinished: the disk has no room for what deleting needs; the next try finishes it.
        """
        # What an interrupted deletion left has to go, too, though no such document is known any more.
        if not self._library.is_half_deleted(tenant, document_id):
            await anyio.to_thread.run_sync(self._library.get, tenant, document_id)
        async with self._readings.without_document(tenant, document_id, cascade):
            await anyio.to_thread.run_sync(self._delete, tenant, document_id)
            await self._traces.forget(tenant, document_id)

    def _delete(self, tenant: str, document_id: str) -> None:
        try:
            self._library.delete(tenant, document_id)
        except (OSError, sqlite3.OperationalError) as error:
            if is_full(error):
                raise DeletionUnfinished(self._library.is_half_deleted(tenant, document_id)) from error
            raise
