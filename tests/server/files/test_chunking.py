"""How texts are cut for vector stores, with the official client over a real library and the embedded model's tokens."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes_responses import post
from fakes_server import MODEL, World, make_world
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import Tokenizer
from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from retrieval.passage import Cutting
from server.files.chunking import BLOCK_CHARACTERS, Cutter
from server.services import embedded_checkpoint

TEXT = "\n".join(
    f"Entry {n}. The lamp of tower {n} was lit by keeper number {n}, and the log of that night says nothing else. "
    f"Permit KX-{n:04d}-Z was given for it in the harbour office."
    for n in range(60)
)
QUERY = "What is permit KX-0030-Z?"


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer(embedded_checkpoint())


@pytest.fixture
def world(tmp_path: Path, words: Tokenizer) -> World:
    return make_world(tmp_path / "data", words, library=Library.open(tmp_path / "data", HashEmbedder(dimension=16)))


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def static(most: int, overlap: int) -> Any:
    return {"type": "static", "static": {"max_chunk_size_tokens": most, "chunk_overlap_tokens": overlap}}


def texts(client: openai.OpenAI, store: str, **more: Any) -> list[str]:
    hits = client.vector_stores.search(store, query=QUERY, max_num_results=20, **more)
    return [hit.content[0].text for hit in hits]


@settings(deadline=None, max_examples=25)
@given(text=st.text(max_size=2000), most=st.integers(4, 200), seed=st.integers(0, 100))
def test_no_piece_has_more_tokens_than_it_may(words: Tokenizer, text: str, most: int, seed: int) -> None:
    cutting = Cutting(most, seed % (most // 2 + 1))
    for piece in Cutter(words).pieces(text, cutting):
        # One character may be more tokens than a piece may have; it cannot be cut.
        assert words.count(text[piece.start : piece.end]) <= most or len(piece) == 1


def test_a_long_text_is_cut_as_a_short_one(words: Tokenizer) -> None:
    text = TEXT * (2 + 2 * BLOCK_CHARACTERS // len(TEXT))
    pieces = Cutter(words).pieces(text, Cutting(400, 100))
    counts = [words.count(text[piece.start : piece.end]) for piece in pieces[:-1]]
    assert max(counts) <= 400 and min(counts) > 380
    shared = [words.count(text[b.start : a.end]) for a, b in pairwise(pieces)]
    assert min(shared) >= 99 and max(shared) < 112


def test_each_store_has_its_own_cut_of_one_document(client: openai.OpenAI, words: Tokenizer) -> None:
    file = client.files.create(file=("log.txt", TEXT.encode()), purpose="assistants").id
    plain = client.vector_stores.create(file_ids=[file]).id
    cut: Any = static(200, 50)
    small = client.vector_stores.create(file_ids=[file], chunking_strategy=cut).id
    large = client.vector_stores.create().id
    client.vector_stores.files.create_and_poll(file, vector_store_id=large, chunking_strategy=static(1000, 0))
    for store, shown in ((plain, "other"), (small, cut), (large, static(1000, 0))):
        told = client.vector_stores.files.poll(file, vector_store_id=store, poll_interval_ms=10)
        assert told.status == "completed" and told.chunking_strategy is not None
        assert told.chunking_strategy.model_dump() == (shown if isinstance(shown, dict) else {"type": shown})
        (listed,) = client.vector_stores.files.list(store)
        assert listed.chunking_strategy == told.chunking_strategy
    # One document underneath.
    assert len(client.get("/documents", cast_to=object)["data"]) == 1  # type: ignore[index]
    own = texts(client, plain)
    assert "KX-0030-Z" in own[0]
    for store, most in ((small, 200), (large, 1000)):
        found = texts(client, store)
        assert not set(found) & set(own)
        assert found and all(text in TEXT for text in found) and "KX-0030-Z" in found[0]
        counts = [words.count(text) for text in found]
        assert max(counts) <= most
        assert all(0.8 * most < words.count(text) for text in found if not TEXT.endswith(text))
    content = client.vector_stores.files.content(file, vector_store_id=small)
    assert [each.text for each in content] == [TEXT]


def test_files_of_one_content_are_cut_each_in_its_own_way(client: openai.OpenAI, words: Tokenizer) -> None:
    store = client.vector_stores.create().id
    ids = {}
    for name, cut in (("auto", {"type": "auto"}), ("small", static(100, 0)), ("large", static(400, 200))):
        file = client.files.create(file=(f"{name}.txt", TEXT.encode()), purpose="assistants").id
        ids[name] = file
        batch: Any = {"files": [{"file_id": file, "chunking_strategy": cut}]}
        if name == "small":
            batch = {"file_ids": [file], "chunking_strategy": cut}
        told = client.vector_stores.file_batches.create_and_poll(store, poll_interval_ms=10, **batch)
        assert told.file_counts.completed == 1
    hits = client.vector_stores.search(store, query=QUERY, max_num_results=20).data
    of_file = {name: [hit.content[0].text for hit in hits if hit.file_id == ids[name]] for name in ids}
    assert all(any("KX-0030-Z" in text for text in own) for own in of_file.values())
    assert max(map(words.count, of_file["small"])) <= 100 < max(map(words.count, of_file["large"])) <= 400
    tools: Any = [{"type": "file_search", "vector_store_ids": [store], "max_num_results": 9}]
    response = client.responses.create(model=MODEL, input=QUERY, tools=tools, include=["file_search_call.results"])
    results = response.output[0].results or []  # type: ignore[union-attr]
    for name, most in (("small", 100), ("large", 400)):
        own = [result.text or "" for result in results if result.file_id == ids[name]]
        assert own and set(own) <= set(of_file[name]) and max(map(words.count, own)) <= most


def test_a_file_that_is_added_again_is_cut_anew(client: openai.OpenAI, words: Tokenizer) -> None:
    store = client.vector_stores.create().id
    file = client.files.create(file=("log.txt", TEXT.encode()), purpose="assistants").id
    add = client.vector_stores.files.create_and_poll
    for cut in (static(100, 0), static(300, 0), {"type": "auto"}, static(100, 0)):
        told = add(file, vector_store_id=store, chunking_strategy=cut, poll_interval_ms=10)
        assert told.status == "completed" and told.chunking_strategy is not None
        assert told.chunking_strategy.type == {"auto": "other"}.get(str(cut["type"]), cut["type"])
        most = cut["static"]["max_chunk_size_tokens"] if "static" in cut else 500
        assert most // 3 < words.count(texts(client, store)[0]) <= most


def test_responses_rest_on_the_pieces(client: openai.OpenAI, url: str, world: World, words: Tokenizer) -> None:
    store = client.vector_stores.create().id
    client.vector_stores.files.upload_and_poll(
        vector_store_id=store, file=("log.txt", TEXT.encode()), chunking_strategy=static(300, 100)
    )
    world.engine.enqueue("Permit KX-0030-Z was given for it.")
    body = {
        "model": MODEL,
        "input": QUERY,
        "tools": [{"type": "file_search", "vector_store_ids": [store], "max_num_results": 2}],
        "include": ["file_search_call.results"],
    }
    told = post(url, body).json()
    results = told["output"][0]["results"]
    assert results and all(200 < words.count(result["text"]) <= 300 for result in results)
    assert all(result["text"] == TEXT[result["start_char"] : result["end_char"]] for result in results)
    assert results[0]["text"] in words.decode(world.engine.requests[-1].prompt_ids)
    assert told["output"][1]["content"][0]["annotations"][0]["quote"] in results[0]["text"]


@pytest.mark.parametrize(
    ("strategy", "param"),
    [
        ({}, "type"),
        ({"type": "fixed"}, "type"),
        ({"type": "static"}, "static"),
        ({"type": "auto", "static": {}}, "static"),
        (static(99, 0), "static.max_chunk_size_tokens"),
        (static(4097, 0), "static.max_chunk_size_tokens"),
        (static(100, -1), "static.chunk_overlap_tokens"),
        (static(100, 51), "static.chunk_overlap_tokens"),
        ({"type": "static", "static": {"max_chunk_size_tokens": 100}}, "static.chunk_overlap_tokens"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_path(client: openai.OpenAI, strategy: Any, param: str) -> None:
    store = client.vector_stores.create().id
    file = client.files.create(file=("log.txt", b"Text."), purpose="assistants").id
    batch: Any = [{"file_id": file, "chunking_strategy": strategy}]
    with pytest.raises(openai.BadRequestError) as error:
        client.vector_stores.create(chunking_strategy=strategy)
    assert error.value.param == f"chunking_strategy.{param}"
    with pytest.raises(openai.BadRequestError) as error:
        client.vector_stores.files.create(store, file_id=file, chunking_strategy=strategy)
    assert error.value.param == f"chunking_strategy.{param}"
    with pytest.raises(openai.BadRequestError) as error:
        client.vector_stores.file_batches.create(store, files=batch)
    assert error.value.param == f"files.0.chunking_strategy.{param}"
