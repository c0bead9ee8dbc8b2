"""Files and vector stores as whoever answers from them sees them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from server.files.filters import Filter
from server.files.nouns import Hit, RankingOptions, StoreDocument


class FileDocuments(Protocol):
    """The documents behind files. Every id is looked up among those of ``tenant`` alone.

    ``filters`` may be parsed (``server.files.filters.parse_filter``) or as they came; in that case they raise
    ``RequestInvalid`` with a ``param`` below ``filters``.
    """

    async def documents_of_stores(
        self, tenant: str, vector_store_ids: Sequence[str], filters: Mapping[str, Any] | Filter | None = None
    ) -> list[StoreDocument]:
        """The documents of the completed files of these stores that pass the filters, store by store, oldest file
        first. A file that stands in several of the stores is there once for each. Counts as a use of the stores.

        Raises:
            UnknownVectorStore: one of the ids is of no store of the tenant.
            VectorStoreExpired: one of the stores was not used for too long.
        """
        ...

    async def document_of_file(self, tenant: str, file_id: str) -> StoreDocument:
        """The document of one file, which is made first if there is none; returns when it can be asked.

        Raises:
            UnknownFile: there is no such file.
            FileUnanswerable: it cannot be read; ``code`` and message say why.
        """
        ...

    async def search(
        self,
        tenant: str,
        vector_store_ids: Sequence[str],
        query: str | Sequence[str],
        max_num_results: int = 10,
        filters: Mapping[str, Any] | Filter | None = None,
        ranking_options: RankingOptions | None = None,
    ) -> list[Hit]:
        """The passages of these stores' files that may hold what the queries ask for, best first.

        A passage that several queries find is there once, with its best score. A passage of a document that several of
        the files share is there once for each of them. Raises as ``documents_of_stores``.
        """
        ...
