"""Asking documents: JSON and streams, found and not, every quote true."""

import json

import httpx

from fakes_server import World, sse
from model.engine.request import EvidenceSpan
from retrieval.passage import Passage, Span

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp. Nothing else happened."


async def test_a_grounded_answer_cites_what_stands_in_the_document(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("It was Margarethe Oldenkamp who paid QX-7741-B.")
    reply = await client.post("/v1/ask", json={"documents": [document], "question": "Who paid invoice QX-7741-B?"})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body["answer"] == "It was Margarethe Oldenkamp who paid QX-7741-B." and body["found"] is True
    assert [citation["quote"] for citation in body["citations"]] == ["Margarethe Oldenkamp", "QX-7741-B"]
    for citation in body["citations"]:
        assert TEXT[citation["start"] : citation["end"]] == citation["quote"]
        assert body["answer"][citation["answer_start"] : citation["answer_end"]] == citation["quote"]
    (source,) = body["sources"]
    assert source["text"] == TEXT[source["start"] : source["end"]] and source["number"] == 1
    print(json.dumps(body["usage"], indent=1))
