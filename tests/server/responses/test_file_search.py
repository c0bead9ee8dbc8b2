"""The tool file_search, and files in messages, with the official client; every span is held against the stored text."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fakes_responses import checked, post, streamed
from fakes_server import MODEL, World

from model.tokenizer import Tokenizer
from retrieval.passage import Passage, Span

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp. Rent is due in March."
OTHER = "The garden was planted by Anselm Rautenberg. Margarethe Oldenkamp left."
WHO = "Who paid invoice QX-7741-B?"
SEARCH = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.file_search_call.in_progress",
    "response.file_search_call.searching",
    "response.file_search_call.completed",
    "response.output_item.done",
    "response.output_item.added",
    "response.content_part.added",
]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def filed(client: openai.OpenAI, text: str, name: str, store: str | None = None, **attributes: str) -> str:
    """The id of a file with this text, which can be asked in the store."""
    file = client.files.create(file=(name, text.encode()), purpose="assistants").id
    if store is not None:
        client.vector_stores.files.create_and_poll(
            file, vector_store_id=store, attributes=dict(attributes), poll_interval_ms=10
        )
    return file


def tool(store: str, **more: Any) -> list[Any]:
    return [{"type": "file_search", "vector_store_ids": [store], **more}]


def read(world: World, tokenizer: Tokenizer) -> str:
    """What the model was given last."""
    return tokenizer.decode(world.engine.requests[-1].prompt_ids)


def test_a_program_for_file_search_runs_as_it_is(client: openai.OpenAI, world: World, tokenizer: Tokenizer) -> None:
    store = client.vector_stores.create(name="papers").id
    file = filed(client, TEXT, "ledger.txt", store, year="2024")
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    response = client.responses.create(model=MODEL, input=WHO, tools=tool(store), include=["file_search_call.results"])
    call, message = response.output
    assert call.type == "file_search_call" and message.type == "message"
    assert call.id.startswith("fs_") and call.status == "completed" and call.queries == [WHO]
    assert call.results
    for result in call.results:
        told = result.model_dump()
        assert result.file_id == file and result.filename == "ledger.txt" and result.attributes == {"year": "2024"}
        assert result.text == TEXT[told["start_char"] : told["end_char"]] and 0 <= (result.score or 0) <= 1
        assert result.text in read(world, tokenizer)
    (part,) = message.content
    assert part.type == "output_text" and part.text == "It was Margarethe Oldenkamp."
    (annotation,) = part.annotations
    assert annotation.type == "file_citation"
    assert (annotation.file_id, annotation.filename) == (file, "ledger.txt")
    assert part.text[: annotation.index].endswith("Margarethe Oldenkamp")
    told = annotation.model_dump()
    assert told["quote"] == TEXT[told["start_char"] : told["end_char"]] == "Margarethe Oldenkamp"
    assert told["page"] == 1
    assert response.usage is not None and response.usage.model_dump()["fano"]["retrieval"]["used"] is True
    (used,) = response.tools
    assert used.type == "file_search" and used.vector_store_ids == [store] and used.max_num_results == 5
    stored = client.responses.retrieve(response.id)
    assert stored.output[0].results is None  # type: ignore[union-attr]
    again = client.responses.retrieve(response.id, include=["file_search_call.results"])
    assert again.model_dump() == response.model_dump()
    items = list(client.responses.input_items.list(response.id, include=["file_search_call.results"]))
    assert [item.type for item in items] == ["message"]


def test_the_events_of_a_search(client: openai.OpenAI, url: str, world: World) -> None:
    store = client.vector_stores.create().id
    file = filed(client, TEXT, "ledger.txt", store)
    for include in ([], ["file_search_call.results"]):
        world.engine.enqueue("It was Margarethe Oldenkamp indeed.")
        events = streamed(url, {"model": MODEL, "input": WHO, "tools": tool(store), "include": include})
        assert [each["type"] for each in events[: len(SEARCH)]] == SEARCH
        assert [(each["output_index"]) for each in events if "output_index" in each] == [0] * 5 + [1] * (
            len(events) - 5 - 3
        )
        added = [each for each in events if each["type"] == "response.output_text.annotation.added"]
        final = events[-1]["response"]
        assert [each["annotation_index"] for each in added] == [0]
        assert [each["annotation"] for each in added] == final["output"][1]["content"][0]["annotations"]
        assert added[0]["annotation"]["file_id"] == file
        call = final["output"][0]
        assert events[6]["item"] == call and (call["results"] is not None) == bool(include)


def test_the_stream_helper_and_async(url: str, client: openai.OpenAI, world: World) -> None:
    store = client.vector_stores.create().id
    filed(client, TEXT, "ledger.txt", store)
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    with client.responses.stream(model=MODEL, input=WHO, tools=tool(store)) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds.count("response.output_text.annotation.added") == 1
    assert [item.type for item in final.output] == ["file_search_call", "message"]


def test_which_tool_is_used(client: openai.OpenAI, world: World, tokenizer: Tokenizer) -> None:
    store = client.vector_stores.create().id
    filed(client, TEXT, "ledger.txt", store)

    def kinds(question: str, **choice: Any) -> list[str]:
        response = client.responses.create(model=MODEL, input=question, tools=tool(store), **choice)
        return [item.type for item in response.output]

    both, alone = ["file_search_call", "message"], ["message"]
    assert kinds(WHO) == kinds(WHO, tool_choice="auto") == both
    assert kinds("Thanks!") == alone and "noon" not in read(world, tokenizer)
    assert kinds("Thanks!", tool_choice="required") == both
    assert kinds("Thanks!", tool_choice={"type": "file_search"}) == both
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "file_search"}]}
    assert (
        kinds("Thanks!", tool_choice=allowed) == both
        and kinds("Thanks!", tool_choice=allowed | {"mode": "auto"}) == alone
    )
    assert kinds(WHO, tool_choice="none") == alone and "Margarethe" not in read(world, tokenizer)
    with pytest.raises(openai.BadRequestError) as nothing:
        client.responses.create(model=MODEL, input=WHO, tool_choice="required")
    assert nothing.value.param == "tool_choice"


def test_filters_numbers_and_scores(client: openai.OpenAI, world: World, tokenizer: Tokenizer) -> None:
    store = client.vector_stores.create().id
    ledger = filed(client, TEXT, "ledger.txt", store, kind="money")
    garden = filed(client, OTHER, "garden.txt", store, kind="plants")

    def found(**more: Any) -> list[str | None]:
        response = client.responses.create(
            model=MODEL,
            input="What did Margarethe Oldenkamp do with the invoice?",
            tools=tool(store, **more),
            include=["file_search_call.results"],
        )
        results = response.output[0].results  # type: ignore[union-attr]
        assert response.output[0].type == "file_search_call" and results is not None
        return [result.file_id for result in results]

    assert set(found()) == {ledger, garden}
    assert set(found(filters={"type": "eq", "key": "kind", "value": "plants"})) == {garden}
    assert "invoice" not in read(world, tokenizer).lower().split("question:")[0]
    assert len(found(max_num_results=1)) == 1
    assert len(found(max_num_results=50)) >= 2
    with pytest.raises(openai.BadRequestError) as wrong:
        found(filters={"type": "like", "key": "kind", "value": "plants"})
    assert wrong.value.param is not None and wrong.value.param.startswith("tools.0.filters")


def test_what_scores_too_little_is_left_out(client: openai.OpenAI, world: World, tokenizer: Tokenizer) -> None:
    store = filled(client)
    (document,) = world.library.documents
    second, third = TEXT.index("Invoice"), TEXT.index("Rent")
    spans = [Span(0, second), Span(second, third), Span(third, len(TEXT))]
    world.library.plant(
        *(
            Passage(document, "ledger.txt", span, TEXT[span.start : span.end], None, score, ("lexical",))
            for span, score in zip(spans, (0.9, 0.5, 0.2), strict=True)
        )
    )
    for threshold, kept in ((None, 3), (0.5, 2), (0.95, 0)):
        ranking = {} if threshold is None else {"ranking_options": {"score_threshold": threshold, "ranker": "auto"}}
        response = client.responses.create(
            model=MODEL, input=WHO, tools=tool(store, **ranking), include=["file_search_call.results"]
        )
        results = response.output[0].results  # type: ignore[union-attr]
        assert [result.score for result in results or ()] == [0.9, 0.5, 0.2][:kept]
        assert ("Rent" in read(world, tokenizer)) == (kept == 3) or kept == 0
    assert response.output_text.startswith("Nothing about this was found.")


def test_a_store_without_files_and_one_that_is_none(client: openai.OpenAI, world: World) -> None:
    store = client.vector_stores.create().id
    response = client.responses.create(model=MODEL, input=WHO, tools=tool(store), include=["file_search_call.results"])
    assert response.output[0].results == []  # type: ignore[union-attr]
    assert response.output_text == "Nothing about this was found. There was no file to search."
    asked = {"model": MODEL, "input": WHO, "tools": tool(store)}
    assert client.responses.input_tokens.count(**asked).input_tokens == 0 and world.engine.requests == []
    # What asks nothing of files is answered, and so is what is to have a form.
    for more in ({"input": "Thank you!"}, {"text": {"format": {"type": "json_object"}}}):
        assert client.responses.create(**asked | more).output_text == "ok"
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as unknown:
            client.responses.create(model=MODEL, input=WHO, tools=tool("vs_none"), stream=stream)
        assert (unknown.value.code, unknown.value.param) == ("vector_store_not_found", "tools.0.vector_store_ids")
    with pytest.raises(openai.BadRequestError) as assistant:
        client.responses.create(
            model=MODEL,
            input=[{"role": "assistant", "content": "Well."}],
            tools=tool(filled(client)),
        )
    assert assistant.value.param == "input.0.role"


def filled(client: openai.OpenAI) -> str:
    store = client.vector_stores.create().id
    filed(client, TEXT, "ledger.txt", store)
    return store


def test_nothing_is_found(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input="Quokka habitats?", tools=tool(filled(client)), include=["file_search_call.results"]
    )
    assert response.output_text.startswith("Nothing about this was found. Searched")
    assert response.output[0].results == []  # type: ignore[union-attr]
    assert response.usage is not None and response.usage.total_tokens == 0


def test_a_file_in_a_message(client: openai.OpenAI, world: World, tokenizer: Tokenizer) -> None:
    file = filed(client, TEXT, "ledger.txt")
    question: Any = {"type": "input_text", "text": WHO}
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    first = client.responses.create(
        model=MODEL, input=[{"role": "user", "content": [{"type": "input_file", "file_id": file}, question]}]
    )
    assert [item.type for item in first.output] == ["message"]
    (annotation,) = first.output[0].content[0].annotations  # type: ignore[union-attr]
    assert (annotation.file_id, annotation.filename) == (file, "ledger.txt")  # type: ignore[union-attr]
    items = list(client.responses.input_items.list(first.id))
    assert items[0].content[0].model_dump(exclude_none=True) == {"type": "input_file", "file_id": file}  # type: ignore[union-attr]
    # It is there for the turns after it, too.
    world.engine.enqueue("At noon.")
    second = client.responses.create(model=MODEL, input="When does the vault open?", previous_response_id=first.id)
    assert "noon" in read(world, tokenizer) and second.output_text == "At noon."
    # Who sends a file along asks about it, whatever the words.
    for text, previous in (("Thanks!", None), ("Thanks!", first.id)):
        file_part: Any = {"type": "input_file", "file_id": file}
        content = [{"type": "input_text", "text": text}, *([file_part] if previous is None else [])]
        reply = client.responses.create(
            model=MODEL,
            input=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
            previous_response_id=previous,
        )
        assert reply.usage is not None
        assert reply.usage.model_dump()["fano"]["retrieval"]["used"] == (previous is None), text
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(
            model=MODEL,
            input=[{"role": "user", "content": [question, {"type": "input_file", "file_id": "file-none"}]}],
        )
    assert (unknown.value.code, unknown.value.param) == ("file_not_found", "input.0.content.1.file_id")


def test_a_file_within_the_request(client: openai.OpenAI, url: str, world: World, tokenizer: Tokenizer) -> None:
    def content(data: str, name: str = "ledger.txt") -> Any:
        file = {"type": "input_file", "filename": name, "file_data": data}
        return [{"role": "user", "content": [file, {"type": "input_text", "text": WHO}]}]

    data = base64.b64encode(TEXT.encode()).decode()
    for spelled in (data, f"data:text/plain;base64,{data}"):
        world.engine.enqueue("It was Margarethe Oldenkamp.")
        response = checked(post(url, {"model": MODEL, "input": content(spelled)}).json())
        annotation = response.output[0].content[0].annotations[0].model_dump()  # type: ignore[union-attr]
        assert annotation["filename"] == "ledger.txt" and annotation["file_id"].startswith("doc_")
        assert TEXT[annotation["start_char"] : annotation["end_char"]] == annotation["quote"]
    item = next(iter(client.responses.input_items.list(response.id)))
    assert item.content[0].model_dump(exclude_none=True) == {"type": "input_file", "filename": "ledger.txt"}  # type: ignore[union-attr]
    for wrong, code in (
        ("%%%", "invalid_value"),
        ("data:text/plain,aGVsbG8=", "invalid_value"),
        ("data:;base64,", "invalid_value"),
        (base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0").decode(), "unsupported_file"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model=MODEL, input=content(wrong))
        assert (refused.value.code, refused.value.param) == (code, "input.0.content.0.file_data"), wrong
    with pytest.raises(openai.BadRequestError) as empty:
        client.responses.create(model=MODEL, input=[{"role": "user", "content": content(data)[0]["content"][:1]}])
    assert empty.value.param == "input.0.content"


def test_documents_and_recall_of_the_extension(client: openai.OpenAI, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    response = client.responses.create(model=MODEL, input=WHO, extra_body={"fano": {"documents": [document]}})
    (annotation,) = response.output[0].content[0].annotations  # type: ignore[union-attr]
    assert (annotation.file_id, annotation.filename) == (document, "note.txt")  # type: ignore[union-attr]
    for fano, param in (
        ({"recall": "verbatim"}, "fano.recall"),
        ({"max_passages": 3}, "fano.max_passages"),
        ({"documents": [document], "recall": "free"}, "fano.recall"),
        ({"session": "talk"}, "fano.session"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model=MODEL, input=WHO, extra_body={"fano": fano})
        assert refused.value.param == param


def test_a_file_can_be_deleted_though_a_response_was_made_from_it(client: openai.OpenAI, world: World) -> None:
    store = client.vector_stores.create().id
    file = filed(client, TEXT, "ledger.txt", store)
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    made = client.responses.create(model=MODEL, input=WHO, tools=tool(store))
    client.files.delete(file)
    assert world.library.documents == {}
    assert client.responses.retrieve(made.id).output_text == "It was Margarethe Oldenkamp."
    later = client.responses.create(model=MODEL, input="Thanks!", previous_response_id=made.id)
    assert later.status == "completed"


def test_a_search_counts_as_it_will_be_made(client: openai.OpenAI, world: World) -> None:
    store = filled(client)
    counted = client.responses.input_tokens.count(model=MODEL, input=WHO, tools=tool(store))
    made = client.responses.create(model=MODEL, input=WHO, tools=tool(store))
    assert made.usage is not None and counted.input_tokens == made.usage.input_tokens


def test_the_search_of_a_follow_up(client: openai.OpenAI, world: World) -> None:
    store = filled(client)
    first = client.responses.create(model=MODEL, input=WHO, tools=tool(store))
    world.engine.enqueue("Yes.")
    second = client.responses.create(
        model=MODEL, input="When was it paid?", tools=tool(store), previous_response_id=first.id
    )
    assert second.output[0].queries[0].endswith("When was it paid?") and "QX-7741-B" in second.output[0].queries[0]  # type: ignore[union-attr]


def test_a_form_is_refused_with_documents_and_kept_without(client: openai.OpenAI, world: World) -> None:
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str

    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.parse(model=MODEL, input=WHO, tools=tool(filled(client)), text_format=Person)
    assert refused.value.param == "text.format"
    world.engine.enqueue('{"name": "Margarethe"}')
    parsed = client.responses.parse(model=MODEL, input=WHO, text_format=Person)
    assert parsed.output_parsed == Person(name="Margarethe")
    request = world.engine.requests[-1]
    assert request.constraint is not None
    assert parsed.text is not None and parsed.text.format is not None and parsed.text.format.type == "json_schema"
    world.engine.enqueue('{"name": "Margarethe"}')
    with client.responses.stream(model=MODEL, input=WHO, text_format=Person) as stream:
        stream.until_done()
        assert stream.get_final_response().output_parsed == Person(name="Margarethe")
    client.responses.create(model=MODEL, input=WHO, text={"format": {"type": "json_object"}})
    assert world.engine.requests[-1].constraint is not None
    client.responses.create(model=MODEL, input=WHO, text={"format": {"type": "text"}, "verbosity": "medium"})
    assert world.engine.requests[-1].constraint is None
    for form, param in (
        ({"type": "json_schema", "name": "x"}, "text.format.schema"),
        ({"type": "json_schema", "name": "x", "schema": {"type": "thing"}}, "text.format.schema"),
        ({"type": "text", "name": "x"}, "text.format.name"),
    ):
        with pytest.raises(openai.BadRequestError) as wrong:
            client.responses.create(model=MODEL, input=WHO, text={"format": form})  # type: ignore[arg-type]
        assert wrong.value.param == param


def test_a_conversation_holds_the_documents_that_it_quotes_or_names(
    client: openai.OpenAI, url: str, world: World
) -> None:
    store = client.vector_stores.create().id
    for number in range(6):
        filed(client, f"Gardens of number {number} are green.", f"{number}.txt", store)
    filed(client, TEXT, "ledger.txt", store)
    client.responses.create(model=MODEL, input=WHO, tools=tool(store))
    (session,) = httpx.get(f"{url}/sessions").json()["data"]
    names = [world.library.documents[document].name for document in session["documents"]]
    assert names == ["ledger.txt", "0.txt", "1.txt", "2.txt"] and session["name"].startswith("response:")
