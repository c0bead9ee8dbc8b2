"""What stands before the model is asked: prompt, sampling, numbered sources, and what may be quoted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from model.engine.request import SamplingParams
from retrieval.passage import Document, DocumentStatus, Passage, Span
from server.answers.certainty import Evidence, values_of
from server.answers.citations import Source
from server.answers.given import is_given
from server.answers.inquiry import Inquiry, RetrievalBill
from server.answers.prompt import Prompt
from server.chat.conversation import Conversation
from server.long_prompts.asking import is_message

# Documents that are named where nothing was found.
MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Groundwork:
    """Everything that stands before the model is asked.

    ``sources`` is what was found; ``readings`` is what of it stands in the prompt, so only that is quoted (law 8).
    ``is_whole``: a quote is a whole piece of ``evidence``. ``is_certain``: all the pieces are the answer, and no model
    is asked. ``conversation`` is what a session will remember, without passages; None where nobody will ask for it.
    ``is_long``: the prompt itself was searched, for it is longer than the window. ``to_read``: what of it is read
    beside the answer, which does not start from it.
    """

    prompt: Prompt
    sampling: SamplingParams
    sources: tuple[Source, ...]
    readings: tuple[Source, ...]
    evidence: tuple[Evidence, ...]
    bill: RetrievalBill
    searched: str
    conversation: Conversation | None = None
    is_whole: bool = False
    is_certain: bool = False
    is_long: bool = False
    to_read: Prompt | None = None

    def documents(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Of the documents that were asked those that the answer may say anything of: by a source, or by its name."""
        of_sources = [each for source in self.sources if not is_message(each := source.passage.document_id)]
        return tuple(dict.fromkeys([*of_sources, *asked[:MOST_NAMED]]))


def is_unanswerable(inquiry: Inquiry, found: Groundwork) -> bool:
    """Whether no model is asked, for documents were and have nothing, or there is nothing that could be quoted."""
    if found.sources or (inquiry.searches_nothing and found.is_long):
        return False
    return bool(inquiry.documents or inquiry.recall == "verbatim" or inquiry.searches_nothing)


def sampling_params(inquiry: Inquiry, max_tokens: int, temperature: float) -> SamplingParams:
    """The client's wishes; ``temperature`` for one that has none."""
    asked = inquiry.sampling
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        repetition_penalty=asked.repetition_penalty,
        logit_bias=asked.logit_bias,
        seed=asked.seed,
        stop=asked.stop,
        logprobs=asked.logprobs,
        prompt_logprobs=asked.prompt_logprobs,
    )


def quotable(sources: Sequence[Source], question: str) -> tuple[tuple[Evidence, ...], bool]:
    """What may be quoted, and whether only whole pieces of it: the values under the key that was asked for; else the
    sentences or rows that hold such a key, else the whole passages."""
    values = values_of(sources, question)
    if values.pieces:
        return values.pieces, values.is_whole
    rows = [Evidence(source, *row) for source in sources if (row := _row(source.passage)) is not None]
    passages = [Evidence(source, source.passage.span.start, source.passage.text) for source in sources]
    if rows:
        # What the request brings along may be quoted beside them.
        rows = [*(piece for piece in passages if is_given(piece.source.passage)), *rows]
    return tuple(dict.fromkeys(rows or passages)), False


def nearest_reading(sources: Sequence[Source]) -> Source:
    """What a model reads that reads one sentence: the one under a key, else the nearest, else the first passage."""

    def score(source: Source) -> float:
        nearest = source.passage.nearest
        return -1.0 if nearest is None else nearest.score

    chosen = sources[0] if sources[0].passage.evidence is not None else max(sources, key=score)
    passage = chosen.passage
    span = passage.evidence if passage.evidence is not None else passage.span
    if passage.evidence is None and passage.nearest is not None:
        span = passage.nearest.span
    start, end = max(span.start, passage.span.start), min(span.end, passage.span.end)
    text = passage.text[start - passage.span.start : end - passage.span.start]
    return Source(chosen.number, replace(passage, span=Span(start, end), text=text))


def _row(passage: Passage) -> tuple[int, str] | None:
    """The part of the evidence that stands in the passage (law 8: only what was in the prompt is quoted)."""
    if passage.evidence is None:
        return None
    start = max(passage.evidence.start, passage.span.start)
    end = min(passage.evidence.end, passage.span.end)
    if start >= end:
        return None
    row = Span(start - passage.span.start, end - passage.span.start)
    return start, passage.text[row.start : row.end]


def searched(documents: Sequence[Document], num_passages: int, parts: Mapping[str, str]) -> str:
    """What was searched, in words; ``parts`` tells what of a document was, where that is not all of it.

    A document that is still indexed has no vectors yet, and what was not found may be found later.
    """
    names = [
        f"{parts[document.id]} of '{document.name}'" if document.id in parts else f"'{document.name}'"
        for document in documents[:MOST_NAMED]
    ]
    more = [f"{len(documents) - MOST_NAMED} more"] if len(documents) > MOST_NAMED else []
    listed = [*names, *more]
    words = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
    passages = "1 passage" if num_passages == 1 else f"{num_passages} passages"
    waiting = sum(document.status is DocumentStatus.INDEXING for document in documents)
    which = "it is" if len(documents) == 1 else f"{waiting} of the {len(documents)} documents are"
    later = f" Only by words and keys so far: {which} not ready to be searched by meaning; ask again soon."
    return f"Searched {passages} of {words}.{later if waiting else ''}"
