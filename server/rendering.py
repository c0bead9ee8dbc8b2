"""Documents, sources, citations and bills in the shapes of the wire."""

from model.policy import AttentionPolicy, PolicyName
from retrieval.passage import Document
from server.answers.citations import Citation, Source
from server.answers.inquiry import AnswerDone, AnswerProgress, ServedModel
from server.schemas import (
    AnswerView,
    ArchiveBytes,
    CitationView,
    CopyView,
    DocumentView,
    ErrorView,
    FanoUsage,
    PrefixView,
    ProgressView,
    PromptTokensDetails,
    ReadingUsage,
    ResidentBytes,
    RetrievalUsage,
    SessionBytes,
    SessionObject,
    SourceView,
    SpanView,
    Usage,
)
from server.sessions.states import SessionView


def document_view(document: Document) -> DocumentView:
    """A document as its tenant sees it."""
    progress, error = document.progress, document.error
    return DocumentView(
        id=document.id,
        name=document.name,
        media_type=document.media_type,
        status=document.status.value,
        answerable=document.answerable,
        progress=ProgressView(
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            seconds_left=progress.seconds_left,
            note=progress.note,
        ),
        num_bytes=document.num_bytes,
        num_characters=document.num_characters,
        num_tokens=document.num_tokens,
        created_at=document.created_at,
        error=ErrorView(code=error.code, message=error.message) if error else None,
    )


def session_view(session: SessionView) -> SessionObject:
    """A session as its tenant sees it."""
    manifest = session.manifest
    return SessionObject(
        name=manifest.name,
        num_tokens=manifest.num_tokens,
        state_tokens=session.state_tokens,
        status=session.status,
        bytes=SessionBytes(
            ssm_state=session.ssm_state_bytes,
            conv_state=session.conv_state_bytes,
            kv=session.kv_bytes,
            kv_archive=session.kv_archive_bytes,
        ),
        version=manifest.version,
        saved_version=manifest.saved_version,
        checksum=manifest.checksum,
        fingerprint=dict(manifest.fingerprint),
        documents=list(manifest.documents),
        created_at=int(manifest.created_at),
        updated_at=int(manifest.updated_at),
    )


def source_view(source: Source) -> SourceView:
    """A numbered passage."""
    passage = source.passage
    return SourceView(
        number=source.number,
        document=passage.document_id,
        name=passage.document_name,
        start=passage.span.start,
        end=passage.span.end,
        text=passage.text,
        page=passage.page,
        score=passage.score,
        also=[
            CopyView(
                document=copy.document_id,
                name=copy.document_name,
                start=copy.span.start,
                end=copy.span.end,
                page=copy.page,
            )
            for copy in passage.also
        ],
    )


def citation_view(citation: Citation) -> CitationView:
    """A citation of an answer from documents."""
    return CitationView(
        source=citation.source,
        document=citation.document,
        start=citation.start,
        end=citation.end,
        quote=citation.quote,
        page=citation.page,
        answer_start=citation.answer_start,
        answer_end=citation.answer_end,
    )


def answer_view(done: AnswerDone, sources: tuple[Source, ...], model: ServedModel) -> AnswerView:
    """The whole answer."""
    return AnswerView(
        answer=done.text,
        found=done.found,
        sources=[source_view(source) for source in sources],
        citations=[citation_view(citation) for citation in done.citations],
        finish_reason=done.finish_reason.value,
        usage=usage_view(done, model),
    )


def progress_view(progress: AnswerProgress) -> dict[str, int | float]:
    """How far the reading of a prompt is, in llama.cpp's manner."""
    return {
        "total": progress.num_tokens,
        "cached": progress.num_cached,
        "processed": progress.num_processed,
        "seconds": round(progress.seconds, 3),
    }


def usage_view(done: AnswerDone, model: ServedModel) -> Usage:
    """Tokens and the bill. Where no model was asked, nothing was held."""
    usage, retrieval = done.usage, done.retrieval
    beside = done.beside
    prompt_tokens = (usage.num_prompt_tokens if usage else 0) + (beside.num_tokens if beside else 0)
    cached_tokens = (usage.num_cached_tokens if usage else 0) + (beside.num_cached if beside else 0)
    completion_tokens = usage.num_completion_tokens if usage else 0
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
        fano=FanoUsage(
            policy=policy_view(usage.policy if usage else model.policy),
            dtype=usage.dtype if usage else model.dtype,
            resident_bytes=ResidentBytes(
                kv=usage.kv_bytes, ssm_state=usage.ssm_state_bytes, conv_state=usage.conv_state_bytes
            )
            if usage
            else ResidentBytes(),
            archive_bytes=ArchiveBytes(
                kv_archive=usage.kv_archive_bytes if usage else 0,
                kv_summaries=usage.kv_summary_bytes if usage else 0,
                text=retrieval.text_bytes,
                index=retrieval.index_bytes,
            ),
            start=retrieval.start.value,
            state_capacity_bits=usage.state_capacity_bits if usage else 0,
            state_recall_bits=model.state_recall_bits,
            # Of what is read beside the answer it is not known yet.
            context_information_bits=usage.information_bits if usage and not beside else None,
            prefix=PrefixView(result=usage.prefix.result, reason=usage.prefix.reason) if usage else None,
            reading=ReadingUsage(total=beside.num_tokens, cached=beside.num_cached, processed=beside.num_processed)
            if beside
            else None,
            retrieval=RetrievalUsage(
                used=retrieval.used,
                reason=retrieval.reason.value,
                passages=retrieval.num_passages,
                facts=retrieval.num_facts,
                seconds=round(retrieval.seconds, 6),
                note=retrieval.note,
                query=retrieval.query,
                within=[
                    SpanView(document=document, start=span.start, end=span.end)
                    for document, spans in retrieval.scope.parts.items()
                    for span in spans
                ]
                or None,
                fact_kinds=sorted(retrieval.scope.kinds or ()) or None,
            ),
            ttft_seconds=done.ttft_seconds,
        ),
    )


def policy_view(policy: AttentionPolicy) -> dict[str, str | int]:
    """The policy with the numbers that mean something under it."""
    if policy.name is PolicyName.FULL:
        return {"name": policy.name.value}
    told: dict[str, str | int] = {"name": policy.name.value, "sinks": policy.sinks, "window": policy.window}
    return {**told, "select": policy.select} if policy.name is PolicyName.ARCHIVE else told
