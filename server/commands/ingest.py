"""``fano ingest``: files of this machine into the data directory, without a server; goes on where it was left."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from retrieval.errors import DataDirectoryInUse, UnsupportedMediaType
from retrieval.library import Library
from retrieval.passage import Document, DocumentStatus
from server.commands.local_files import FileRefused, check_file, keep_file
from server.commands.terminal import ReadingProgress
from server.services import embedded_checkpoint, open_library
from server.settings import Settings

POLL_SECONDS = 0.1


class Interrupted(Exception):
    """Somebody ended it; what was done is kept."""

    def __init__(self, num_left: int) -> None:
        super().__init__(f"stopped with {num_left} left; the same command goes on from here")


@dataclass(slots=True)
class Ingested:
    """What became of the files: the documents in the order of the files, each once, and why others are none.

    A document that the model is to read is ``reading``: that is done by the next server on this data directory.
    """

    documents: list[Document] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def ingest_files(settings: Settings, files: Sequence[Path], tenant: str) -> Ingested:
    """Make documents of the files and index them; those that are there already are left as they are.

    Shows progress on standard error. Raises ``Interrupted`` on SIGINT, at the next border between two steps;
    ``DataDirectoryInUse`` while a server runs on the data directory; and what the model's directory or the disk refuse.
    """
    done = Ingested()
    with ReadingProgress() as progress:
        progress.say("opening the library")
        with _opened(settings) as library:
            kept = _keep(library, settings, files, tenant, done)
            pending = set(library.pending())
            for place, document_id in enumerate(kept):
                try:
                    if document_id in pending:
                        _work(library, tenant, document_id, progress, f"{place + 1} of {len(kept)}, ")
                except KeyboardInterrupt:
                    raise Interrupted(len(kept) - place) from None
                done.documents.append(library.get(tenant, document_id))
                progress.forget(document_id)
    failed = [each for each in done.documents if each.status is DocumentStatus.FAILED]
    done.refused += [f"{each.name} could not be read: {each.error.message if each.error else ''}" for each in failed]
    return done


@contextmanager
def _opened(settings: Settings) -> Iterator[Library]:
    from model.tokenizer import Tokenizer
    from model.weights import resolve_checkpoint
    from retrieval.embedder import MiniLMEmbedder

    tokenizer = Tokenizer(resolve_checkpoint(settings.model) if settings.model else embedded_checkpoint())
    # Nothing else runs, so the embedder gets all the cores.
    embedder = MiniLMEmbedder(threads=settings.threads or len(os.sched_getaffinity(0)))
    try:
        library = open_library(settings, tokenizer.count, embedder)
    except DataDirectoryInUse:
        raise DataDirectoryInUse(
            f"{settings.data_dir} is in use by another process; send the files to the server that runs on it "
            "(POST /v1/documents), or stop it first"
        ) from None
    try:
        yield library
    finally:
        library.close()


def _keep(library: Library, settings: Settings, files: Sequence[Path], tenant: str, done: Ingested) -> list[str]:
    """Ids of the files' documents; all of them are durable before the first is worked on."""
    kept: dict[str, None] = {}
    for file in files:
        try:
            check_file(file, settings.max_upload_bytes)
            document, _ = keep_file(library, tenant, file, settings.read_documents)
        except (FileRefused, UnsupportedMediaType, PermissionError) as error:
            done.refused.append(str(error))
        else:
            kept[document.id] = None
    return [*kept]


def _work(library: Library, tenant: str, document_id: str, progress: ReadingProgress, place: str) -> None:
    """Bring a document as far as it goes without the model. The work has a thread of its own, so that this one can
    show it and be interrupted."""
    stopping = threading.Event()
    with ThreadPoolExecutor(1, "ingest") as worker:
        work = worker.submit(library.process, document_id, stopping.is_set)
        try:
            while not work.done():
                progress.show(library.get(tenant, document_id), place)
                time.sleep(POLL_SECONDS)
        finally:
            stopping.set()
        work.result()
