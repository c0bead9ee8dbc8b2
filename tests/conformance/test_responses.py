"""Responses, their streams and what is kept of them, by the official client."""

from typing import Any

import openai
import pytest
from conformance.driver import covers, done, listed, opened, refuses
from fakes_engine import FakeEngine
from fakes_server import MODEL
from pydantic import BaseModel

TEXT = b"The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
QUESTION = "Who paid invoice QX-7741-B?"
ANSWER = "It was Margarethe Oldenkamp."


class Payment(BaseModel):
    payer: str


@covers("responses.create", "responses.retrieve", "responses.delete", "responses.input_items.list")
async def test_responses_are_kept(client: Any, engine: FakeEngine) -> None:
    engine.enqueue("One two three")
    made = await done(client.responses.create(model=MODEL, input="Hello", instructions="Be brief."))
    assert made.output_text == "One two three" and made.status == "completed"
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert (await done(client.responses.retrieve(made.id))).output_text == "One two three"
    (item,) = await listed(client.responses.input_items.list(made.id))
    assert item.content[0].text == "Hello"
    engine.enqueue("Four")
    next_one = await done(client.responses.create(model=MODEL, input="And?", previous_response_id=made.id))
    assert next_one.output_text == "Four" and next_one.previous_response_id == made.id
    await done(client.responses.delete(made.id))
    with pytest.raises(openai.NotFoundError):
        await done(client.responses.retrieve(made.id))


async def store_of(client: Any) -> str:
    store = await done(client.vector_stores.create(name="ledgers"))
    sent = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("ledger.txt", TEXT, "text/plain"), poll_interval_ms=10
    )
    assert (await done(sent)).status == "completed"
    return str(store.id)


def check_cited(response: Any) -> None:
    call = next(item for item in response.output if item.type == "file_search_call")
    message = next(item for item in response.output if item.type == "message")
    assert call.status == "completed" and "Margarethe Oldenkamp" in call.results[0].text
    (citation,) = message.content[0].annotations
    told = citation.model_dump()
    assert told["type"] == "file_citation" and told["filename"] == "ledger.txt"
    assert TEXT.decode()[told["start_char"] : told["end_char"]] == told["quote"] == "Margarethe Oldenkamp"


@covers("responses.create")
async def test_file_search_cites(client: Any, engine: FakeEngine) -> None:
    tools: Any = [{"type": "file_search", "vector_store_ids": [await store_of(client)]}]
    engine.enqueue(ANSWER)
    include: Any = ["file_search_call.results"]
    reply = await done(client.responses.create(model=MODEL, input=QUESTION, tools=tools, include=include))
    assert reply.output_text == ANSWER
    check_cited(reply)


@covers("responses.stream")
async def test_the_stream_helper(client: Any, engine: FakeEngine) -> None:
    tools: Any = [{"type": "file_search", "vector_store_ids": [await store_of(client)]}]
    engine.enqueue(ANSWER)
    include: Any = ["file_search_call.results"]
    async with opened(client.responses.stream(model=MODEL, input=QUESTION, tools=tools, include=include)) as stream:
        events = await listed(stream)
        final = await done(stream.get_final_response())
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == sorted({event.sequence_number for event in events})
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    check_cited(final)


@covers("responses.create")
async def test_a_stream(client: Any, engine: FakeEngine) -> None:
    engine.enqueue("One two")
    events = await listed(client.responses.create(model=MODEL, input="Hello", stream=True))
    assert events[-1].response.output[0].content[0].text == "One two"


@covers("responses.create", "responses.stream")
async def test_a_stream_of_a_long_input_tells_how_far_it_is_read(client: Any, engine: FakeEngine) -> None:
    text = "The harbour was closed in winter. Nobody came to the market. " * 300 + TEXT.decode()
    asked = {"model": MODEL, "input": f"{text}\n\n{QUESTION}"}
    engine.enqueue(ANSWER)
    events = await listed(client.responses.create(**asked, stream=True))
    told = [each for each in events if each.type == "response.in_progress"]
    progress = told[-1].model_extra["prompt_progress"]
    assert len(told) > 1 and 0 < progress["cached"] + progress["processed"] <= 2 * progress["total"]
    assert progress["total"] == events[-1].response.usage.input_tokens
    (cited,) = events[-1].response.output[0].content[0].annotations
    assert text[cited.start_char : cited.end_char] == cited.quote == "Margarethe Oldenkamp"
    engine.enqueue(ANSWER)
    async with opened(client.responses.stream(**asked)) as stream:
        numbers = [event.sequence_number for event in await listed(stream)]
        final = await done(stream.get_final_response())
    assert numbers == sorted(set(numbers)) and final.output_text == ANSWER


@covers("responses.parse")
async def test_a_form(client: Any, engine: FakeEngine) -> None:
    engine.enqueue('{"payer": "Margarethe"}')
    reply = await done(client.responses.parse(model=MODEL, input="Who?", text_format=Payment))
    assert reply.output_parsed == Payment(payer="Margarethe")


@covers("responses.input_tokens.count")
async def test_counting(client: Any) -> None:
    counted = await done(client.responses.input_tokens.count(model=MODEL, input="Hello there"))
    assert counted.input_tokens > 2


@covers("responses.create")
async def test_a_file_in_the_input(client: Any, engine: FakeEngine) -> None:
    file = await done(client.files.create(file=("ledger.txt", TEXT, "text/plain"), purpose="user_data"))
    parts: Any = [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": QUESTION}]
    engine.enqueue(ANSWER)
    reply = await done(client.responses.create(model=MODEL, input=[{"role": "user", "content": parts}]))
    assert reply.output_text == ANSWER
    (citation,) = reply.output[-1].content[0].annotations
    assert citation.file_id == file.id


@covers("responses.create", "responses.stream", "responses.input_items.list")
async def test_functions(client: Any, engine: FakeEngine) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    schema["additionalProperties"] = False
    tools: Any = [{"type": "function", "name": "weather", "parameters": schema, "strict": True}]
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'
    engine.enqueue("", pieces=["I look. ", call])
    made = await done(client.responses.create(model=MODEL, input="Weather?", tools=tools))
    message, called = made.output
    assert (message.type, called.name, called.arguments) == ("message", "weather", '{"city": "Bonn"}')
    output: Any = [{"type": "function_call_output", "call_id": called.call_id, "output": "Rain."}]
    more = {"model": MODEL, "tools": tools, "tool_choice": {"type": "function", "name": "weather"}}
    engine.enqueue("", pieces=list(call))
    arguments = {"input": output, "previous_response_id": made.id, **more}
    async with opened(client.responses.stream(**arguments)) as stream:
        events = await listed(stream)
        final = await done(stream.get_final_response())
    assert "".join(each.delta for each in events if "arguments.delta" in each.type) == '{"city": "Bonn"}'
    items = await listed(client.responses.input_items.list(final.id, order="asc"))
    assert [each.type for each in items] == ["message", "message", "function_call", "function_call_output"]


@covers("responses.create", "responses.retrieve", "responses.cancel")
async def test_in_the_background(client: Any, engine: FakeEngine) -> None:
    engine.enqueue("One two three")
    told = await done(client.responses.create(model=MODEL, input="Hello", background=True))
    while told.status in ("queued", "in_progress"):
        told = await done(client.responses.retrieve(told.id))
    assert told.output_text == "One two three" and told.background is True
    assert (await done(client.responses.cancel(told.id))).status == "completed"
    events = await listed(client.responses.retrieve(told.id, stream=True, starting_after=2))
    assert events[0].sequence_number == 3 and events[-1].response.output_text == "One two three"
    engine.stall()
    told = await done(client.responses.create(model=MODEL, input="Hello", background=True))
    cancelled = await done(client.responses.cancel(told.id))
    engine.go_on()
    assert (cancelled.id, cancelled.status) == (told.id, "cancelled")


@refuses("responses.compact")
async def test_what_there_is_not_is_refused(client: Any) -> None:
    made = await done(client.responses.create(model=MODEL, input="Hello"))
    with pytest.raises(openai.BadRequestError):
        await done(client.responses.cancel(made.id))
    with pytest.raises(openai.BadRequestError) as compact:
        await done(client.responses.compact(model=MODEL, input="Hello"))
    assert compact.value.code == "unsupported_route"
