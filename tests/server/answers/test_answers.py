"""Asking documents: JSON and streams, found and not, every quote true, every refusal before the first byte."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fakes_server import World, WorldMaker, open_client, sse

from model.engine.request import EvidenceSpan, FinishReason
from model.errors import EngineDraining, GenerationFailed, PromptTooLong, QueueFull
from retrieval.passage import Copy, DocumentStatus, Passage, Span

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp. Nothing else happened."
WHO = {"question": "Who paid invoice QX-7741-B?"}


async def test_a_grounded_answer_marks_what_stands_in_the_document(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT, name="ledger.txt")
    world.engine.enqueue("It was Margarethe Oldenkamp who paid QX-7741-B.")
    reply = await client.post("/v1/ask", json={"documents": [document], **WHO})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body["answer"] == "It was Margarethe Oldenkamp who paid QX-7741-B."
    assert body["found"] is True and body["finish_reason"] == "stop"
    assert [citation["quote"] for citation in body["citations"]] == ["Margarethe Oldenkamp", "QX-7741-B"]
    for citation in body["citations"]:
        assert TEXT[citation["start"] : citation["end"]] == citation["quote"]
        assert body["answer"][citation["answer_start"] : citation["answer_end"]] == citation["quote"]
        assert citation["source"] == 1 and citation["document"] == document and citation["page"] == 1
    (source,) = body["sources"]
    assert source == {
        "number": 1,
        "document": document,
        "name": "ledger.txt",
        "start": 25,
        "end": 76,
        "text": "Invoice QX-7741-B was paid by Margarethe Oldenkamp.",
        "page": 1,
        "score": 3.0,
        "also": [],
    }


async def test_the_bill_tells_policy_bytes_and_retrieval(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    usage = (await client.post("/v1/ask", json={"documents": [document], **WHO})).json()["usage"]
    (request,) = world.engine.requests
    assert usage["prompt_tokens"] == len(request.prompt_ids)
    assert usage["completion_tokens"] == 1
    assert usage["total_tokens"] == len(request.prompt_ids) + 1
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    fano = usage["fano"]
    assert fano["retrieval"].pop("seconds") > 0
    assert fano.pop("ttft_seconds") > 0
    assert fano == {
        "policy": {"name": "full"},
        "dtype": "float32",
        "resident_bytes": {"kv": 100, "ssm_state": 100, "conv_state": 10},
        "archive_bytes": {"kv_archive": 0, "kv_summaries": 0, "text": len(TEXT), "index": 1500},
        "start": "fresh",
        "reading": None,
        "state_capacity_bits": 1680,
        "state_recall_bits": None,
        "context_information_bits": None,
        "prefix": {"result": "miss", "reason": "empty"},
        "retrieval": {
            "used": True,
            "reason": "question",
            "passages": 1,
            "facts": 0,
            "note": "searched by words",
            "query": None,
            "within": None,
            "fact_kinds": None,
        },
    }


async def test_the_prompt_has_the_form_the_model_was_trained_on(
    client: httpx.AsyncClient, world: World, tokenizer: Any
) -> None:
    document = world.library.put(TEXT)
    await client.post("/v1/ask", json={"documents": [document], "question": "When does the vault open?"})
    (request,) = world.engine.requests
    expected = [{"role": "user", "content": "[1] The vault opens at noon.\n\nQuestion: When does the vault open?"}]
    assert tuple(request.prompt_ids) == tokenizer.encode_chat(expected)
    assert request.sampling.temperature == 0 and request.sampling.max_tokens == 128
    assert request.evidence is None


async def test_a_verbatim_answer_is_fetched_from_the_document(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.library.plant(Passage(document, "note.txt", Span(25, 76), TEXT[25:76], 1, 1.0, ("lexical",)))
    world.engine.enqueue("Margarethe Oldenkamp", spans=(EvidenceSpan(0, 30, 50),))
    body = (await client.post(f"/v1/documents/{document}/ask", json={**WHO, "recall": "verbatim"})).json()
    assert world.engine.requests[0].evidence == (TEXT[25:76],)
    assert body["answer"] == "Margarethe Oldenkamp" == TEXT[55:75]
    assert body["citations"] == [
        {
            "source": 1,
            "document": document,
            "start": 55,
            "end": 75,
            "quote": "Margarethe Oldenkamp",
            "page": 1,
            "answer_start": 0,
            "answer_end": 20,
        }
    ]


async def test_a_source_tells_where_else_it_stands(client: httpx.AsyncClient, world: World) -> None:
    document, other = world.library.put(TEXT), world.library.put(TEXT, "copy.txt")
    copy = Copy(other, "copy.txt", Span(26, 77), 2)
    world.library.plant(Passage(document, "note.txt", Span(25, 76), TEXT[25:76], 1, 1.0, ("lexical",), also=(copy,)))
    body = (await client.post(f"/v1/documents/{document}/ask", json=WHO)).json()
    told = {"document": other, "name": "copy.txt", "start": 26, "end": 77, "page": 2}
    assert [source["also"] for source in body["sources"]] == [[told]]


async def test_on_a_key_hit_only_the_row_may_be_quoted(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    row = Span(25, 76)
    world.library.plant(
        Passage(document, "note.txt", Span(0, 100), TEXT, None, 2.0, ("key",), evidence=row),
        Passage(document, "note.txt", Span(0, 24), TEXT[:24], None, 1.0, ("lexical",)),
    )
    world.engine.enqueue("Margarethe Oldenkamp", spans=(EvidenceSpan(0, 30, 50),))
    body = (await client.post(f"/v1/documents/{document}/ask", json={**WHO, "recall": "verbatim"})).json()
    assert world.engine.requests[0].evidence == (TEXT[25:76],)
    assert (body["citations"][0]["start"], body["citations"][0]["end"]) == (55, 75)
    assert len(body["sources"]) == 2 and body["usage"]["fano"]["retrieval"]["facts"] == 1


async def test_several_spans_are_joined_and_each_is_cited(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.library.plant(Passage(document, "note.txt", Span(0, 100), TEXT, None, 1.0, ("dense",)))
    world.engine.enqueue("noon Oldenkamp", spans=(EvidenceSpan(0, 19, 23), EvidenceSpan(0, 66, 75)))
    body = (await client.post(f"/v1/documents/{document}/ask", json={**WHO, "recall": "verbatim"})).json()
    assert body["answer"] == "noon Oldenkamp"
    assert [body["answer"][c["answer_start"] : c["answer_end"]] for c in body["citations"]] == ["noon", "Oldenkamp"]


async def test_nothing_found_says_what_was_searched_and_asks_no_model(client: httpx.AsyncClient, world: World) -> None:
    first, second = world.library.put(TEXT, name="a.txt"), world.library.put("Only this.", name="b.txt")
    body = (await client.post("/v1/ask", json={"documents": [first, second], "question": "Penguins?"})).json()
    assert body["found"] is False and body["sources"] == [] and body["citations"] == []
    assert body["answer"] == "Nothing about this was found. Searched 4 passages of 'a.txt' and 'b.txt'."
    assert world.engine.requests == []
    assert body["usage"]["total_tokens"] == 0 and body["usage"]["fano"]["retrieval"]["used"] is True
    assert body["usage"]["fano"]["resident_bytes"] == {"kv": 0, "ssm_state": 0, "conv_state": 0}


async def test_nothing_found_so_far_says_that_more_is_to_come(client: httpx.AsyncClient, world: World) -> None:
    first, second = world.library.put(TEXT, name="a.txt"), world.library.put("Only this.", name="b.txt")
    world.library.documents[first] = replace(world.library.documents[first], status=DocumentStatus.INDEXING)
    for asked, which in (([first], "it is"), ([first, second], "1 of the 2 documents are")):
        body = (await client.post("/v1/ask", json={"documents": asked, "question": "Penguins?"})).json()
        assert body["answer"].endswith(
            f" Only by words and keys so far: {which} not ready to be searched by meaning; ask again soon."
        )


async def test_a_model_that_finds_nothing_is_not_an_answer(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("Not found in the passages.")
    body = (await client.post(f"/v1/documents/{document}/ask", json=WHO)).json()
    assert body["found"] is False
    assert body["answer"] == "Not found in the passages. Searched 3 passages of 'note.txt'."
    assert body["citations"] == []


async def test_a_stream_has_sources_tokens_citations_and_the_whole(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("Margarethe Oldenkamp paid.")
    reply = await client.post(f"/v1/documents/{document}/ask", json={**WHO, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = sse(reply.text)
    names = [name for name, _ in events]
    assert names[0] == "sources" and names[-1] == "done" and names[-2] == "citation"
    assert set(names[1:-2]) == {"token"}
    assert json.loads(events[0][1])[0]["text"] == TEXT[25:76]
    done = json.loads(events[-1][1])
    assert "".join(json.loads(data)["text"] for name, data in events if name == "token") == done["answer"]
    assert done["citations"] == [json.loads(events[-2][1])] and "sources" not in done
    assert done["usage"]["fano"]["dtype"] == "float32"


async def test_a_silent_stream_sends_comments(new_world: WorldMaker) -> None:
    world = new_world(keepalive_seconds=0.05)
    document = world.library.put(TEXT)
    async with open_client(world) as client:
        world.engine.stall()
        asyncio.get_running_loop().call_later(0.3, world.engine.go_on)
        reply = await client.post(f"/v1/documents/{document}/ask", json={**WHO, "stream": True})
    assert reply.text.count(": keep-alive\n\n") >= 3
    assert sse(reply.text)[-1][0] == "done"


async def test_a_failure_after_the_first_byte_is_an_error_event(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("half an", finish_reason=FinishReason.ERROR, error=GenerationFailed(MemoryError()))
    reply = await client.post(f"/v1/documents/{document}/ask", json={**WHO, "stream": True})
    name, data = sse(reply.text)[-1]
    assert reply.status_code == 200 and name == "error"
    assert json.loads(data)["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (QueueFull(64, 64, 7), 429, "queue_full"),
        (PromptTooLong(5000, 10, 4096), 400, "context_length_exceeded"),
        (EngineDraining(), 503, "draining"),
    ],
    ids=["queue full", "too long", "draining"],
)
async def test_what_the_engine_refuses_is_refused_before_the_first_byte(
    client: httpx.AsyncClient, world: World, stream: bool, refusal: Any, status: int, code: str
) -> None:
    document = world.library.put(TEXT)
    world.engine.refuse(refusal)
    reply = await client.post(f"/v1/documents/{document}/ask", json={**WHO, "stream": stream})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers.get("retry-after") == ("7" if status == 429 else None)
    if status == 400:
        assert "5000" in reply.json()["error"]["message"] and "4096" in reply.json()["error"]["message"]


async def test_a_document_that_cannot_be_asked_yet_is_a_409_with_progress(
    client: httpx.AsyncClient, world: World
) -> None:
    world.library.hold()
    document = (await client.post("/v1/documents", json={"text": TEXT})).json()["id"]
    reply = await client.post(f"/v1/documents/{document}/ask", json=WHO)
    assert reply.status_code == 409 and reply.headers["retry-after"] == "13"
    error = reply.json()["error"]
    assert error["code"] == "document_not_ready"
    assert error["progress"] == {"stage": "queued", "done": 0, "total": 1, "seconds_left": 12.4}
    world.library.release()


async def test_an_unknown_document_is_a_404(client: httpx.AsyncClient, world: World) -> None:
    known = world.library.put(TEXT)
    for path, body in (("/v1/documents/doc_x/ask", WHO), ("/v1/ask", {"documents": [known, "doc_x"], **WHO})):
        reply = await client.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "document_not_found")
        assert "doc_x" in reply.json()["error"]["message"]


async def test_evidence_that_cannot_fit_the_window_is_refused_with_both_numbers(
    client: httpx.AsyncClient, world: World
) -> None:
    document = world.library.put("word " * 3000)
    reply = await client.post(f"/v1/documents/{document}/ask", json={"question": "Which word?", "max_tokens": 77})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "77" in error["message"] and "2048" in error["message"]


async def test_passages_that_do_not_fit_are_left_out_and_reported(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(". ".join(f"word {'filling ' * 150}{number}" for number in range(5)))
    body = (await client.post(f"/v1/documents/{document}/ask", json={"question": "Which word?"})).json()
    retrieval = body["usage"]["fano"]["retrieval"]
    kept = len(body["sources"])
    assert 0 < kept < 5 and retrieval["passages"] == kept
    assert retrieval["note"] == f"searched by words; {5 - kept} of 5 passages left out to fit"
    assert len(world.engine.requests[0].prompt_ids) + 128 <= 2048


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"question": "q"}, "documents"),
        ({"documents": [], "question": "q"}, "documents"),
        ({"documents": ["d"], "question": "  "}, "question"),
        ({"documents": ["d"], "question": 5}, "question"),
        ({"documents": "d", "question": "q"}, "documents"),
        ({"documents": ["d"], "question": "q", "recall": "free"}, "recall"),
        ({"documents": ["d"], "question": "q", "max_tokens": 0}, "max_tokens"),
        ({"documents": ["d"], "question": "q", "max_tokens": 1.5}, "max_tokens"),
        ({"documents": ["d"], "question": "q", "stream": "yes"}, "stream"),
        ({"documents": ["d", 7], "question": "q"}, "documents.1"),
        ({"documents": ["d"], "question": "q", "temperature": 1}, "temperature"),
    ],
)
async def test_a_bad_question_names_the_field(client: httpx.AsyncClient, body: Any, param: str) -> None:
    reply = await client.post("/v1/ask", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


@pytest.mark.parametrize("recall", ["verbatim", "grounded"])
async def test_a_citation_tells_its_own_page_and_not_its_passages(
    client: httpx.AsyncClient, world: World, recall: str
) -> None:
    text = "The office opens at nine.\fClara Ostrander settled it."
    document = world.library.put(text)
    world.library.plant(Passage(document, "note.pdf", Span(0, len(text)), text, 1, 1.0, ("key",)))
    start = text.index("Clara")
    world.engine.enqueue("Clara Ostrander", spans=(EvidenceSpan(0, start, start + 15),))
    reply = await client.post("/v1/ask", json={"documents": [document], "recall": recall, **WHO})
    (citation,) = reply.json()["citations"]
    assert (citation["quote"], citation["page"]) == ("Clara Ostrander", 2)
    assert reply.json()["sources"][0]["page"] == 1
