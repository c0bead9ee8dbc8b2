"""An answer under way: what it has said and cited after each piece of the model's text."""

import time
from array import array
from collections.abc import AsyncIterator

from fakes_engine import usage_of
from fakes_library import FakeLibrary

from model.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from retrieval.passage import Passage, Span
from server.answers.citations import Citation, Source
from server.answers.groundwork import Groundwork, sampling_params
from server.answers.inquiry import AnswerDone, AnswerText, Inquiry, RetrievalBill, Sampling
from server.answers.prompt import Prompt, Turn
from server.answers.recording import Recording
from server.answers.replies import Generated
from server.metrics import Metrics

TEXT = "Invoice QX-7741-B was paid by Margarethe Oldenkamp."


async def said(*pieces: str) -> AsyncIterator[TokenEvent]:
    usage = usage_of(GenerationRequest("r", (1,), SamplingParams(max_tokens=9)), len(pieces))
    for number, piece in enumerate(pieces, start=1):
        is_last = number == len(pieces)
        yield TokenEvent(
            "r", piece, (number,), FinishReason.STOP if is_last else None, usage=usage if is_last else None
        )


def under_way(*pieces: str) -> Generated:
    library = FakeLibrary()
    document = library.put(TEXT)
    turns = (Turn("user", "Who paid?"),)
    inquiry = Inquiry("r", "default", turns, (document,), "grounded", Sampling(), 5, time.monotonic())
    sources = (Source(1, Passage(document, "note.txt", Span(0, len(TEXT)), TEXT, 1, 1.0, ("lexical",))),)
    groundwork = Groundwork(
        Prompt(array("i"), 1), sampling_params(inquiry, 9, 0.0), sources, sources, (), RetrievalBill(True, "key"), ""
    )
    recording = Recording(None, None, None, inquiry.documents)  # type: ignore[arg-type]
    events = said(*pieces)
    return Generated(inquiry, groundwork, events, library, Metrics(), recording)  # type: ignore[arg-type]


async def test_a_citation_comes_when_it_is_certain_and_not_at_the_end() -> None:
    answer = under_way("It was Margarethe", " Oldenkamp", " who paid", " QX-7741-B", ".")
    heard = [each async for each in answer.events()]
    told = [each.text if isinstance(each, AnswerText) else each.quote for each in heard[:-2]]  # type: ignore[union-attr]
    assert told == [
        "It was Margarethe",
        " Oldenkamp",
        " who paid",
        "Margarethe Oldenkamp",
        " QX-7741-B",
        ".",
        "QX-7741-B",
    ]
    done = heard[-1]
    assert isinstance(done, AnswerDone) and done.found
    assert list(done.citations) == [each for each in heard if isinstance(each, Citation)]
    assert [citation.page for citation in done.citations] == [1, 1]
