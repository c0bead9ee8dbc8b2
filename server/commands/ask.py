"""``fano ask``: the server's own use cases in one process, over a library of its own."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from retrieval.parsers import supported_media_type
from retrieval.passage import Document, DocumentStatus
from server.answers.inquiry import AnswerDone, Inquiry, Sampling
from server.answers.prompt import Turn
from server.commands.local_files import FileRefused, check_file
from server.commands.terminal import ReadingProgress
from server.documents.uploads import HEAD_BYTES, Upload
from server.errors import EvidenceTooLong
from server.keys import DEFAULT_TENANT
from server.metrics import Metrics
from server.rendering import answer_view
from server.schemas import AnswerView, DocumentRecall
from server.services import Services, load_services
from server.settings import Settings

POLL_SECONDS = 0.1


async def answer_from_files(
    settings: Settings, files: Sequence[Path], question: str, recall: DocumentRecall, max_tokens: int | None
) -> AnswerView:
    """Read the files (those that were read before are known by their content) and answer from them.

    Shows progress on standard error. Raises ``FileRefused`` and what library, model or settings refuse. An
    interrupt leaves what was read so far for the next time.
    """
    for file in files:
        _check(file, settings.max_upload_bytes)
    # Whoever asks once does not wait until all was read.
    changes = {"data_dir": settings.data_dir / "ask", "max_sequences": 1, "read_documents": False}
    own = settings.model_copy(update=changes)
    with ReadingProgress() as progress:
        progress.say("loading the model")
        services = load_services(own, Metrics())
        await services.start()
        try:
            documents = [_accept(services, file) for file in files]
            for document in dict.fromkeys(document.id for document in documents):
                await _read(services, document, progress)
            progress.say("answering")
            return await _answer(
                services, tuple(dict.fromkeys(d.id for d in documents)), question, recall, max_tokens, own
            )
        finally:
            await services.aclose()


def _check(file: Path, max_bytes: int) -> None:
    if not file.is_file():
        raise FileRefused(f"{file} is not a file; name files first and the question last, in quotes")
    check_file(file, max_bytes)


def _accept(services: Services, file: Path) -> Document:
    with file.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    upload = Upload(file.name, None, file, file.stat().st_size, head)
    media_type = supported_media_type(file.name, None, head, file)
    document, _ = services.ingestor.accept(DEFAULT_TENANT, upload, media_type, is_to_be_read=False)
    return document


async def _read(services: Services, document_id: str, progress: ReadingProgress) -> None:
    while True:
        document = services.library.get(DEFAULT_TENANT, document_id)
        progress.show(document)
        if document.status is DocumentStatus.READY:
            return
        if document.status is DocumentStatus.FAILED:
            reason = document.error.message if document.error else "no reason was given"
            raise FileRefused(f"{document.name} could not be read: {reason}")
        await asyncio.sleep(POLL_SECONDS)


async def _answer(
    services: Services,
    documents: tuple[str, ...],
    question: str,
    recall: DocumentRecall,
    max_tokens: int | None,
    settings: Settings,
) -> AnswerView:
    inquiry = Inquiry(
        request_id="ask",
        tenant=DEFAULT_TENANT,
        turns=(Turn("user", question),),
        documents=documents,
        recall=recall,
        sampling=Sampling(max_tokens=max_tokens),
        max_passages=settings.max_passages,
        started=time.monotonic(),
    )
    try:
        async with services.answering.answer(inquiry) as answer:
            async for event in answer.events():
                if isinstance(event, AnswerDone):
                    return answer_view(event, answer.sources, services.model)
    except EvidenceTooLong as error:
        raise FileRefused(str(error)) from error
    raise AssertionError("an answer ends with AnswerDone or an error")
