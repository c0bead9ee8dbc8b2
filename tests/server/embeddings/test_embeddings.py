"""Embeddings: vectors in both spellings by the official client, what they cost, and every refusal by its name."""

import asyncio
import base64
import json
import threading
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fakes_server import EMBEDDER, EMBEDDING_WIDTH, MODEL, open_client
from openai.types import embedding_create_params

from retrieval.embedder import HashEmbedder, MiniLMEmbedder
from server.chat.fields import Treatment
from server.embeddings.embedding import SLICE_TEXTS, Embeddings
from server.embeddings.schema import EMBEDDING_FIELDS, MAX_INPUTS, EmbeddingRequest
from server.errors import RequestInvalid

TEXTS = ["The ship left the harbour.", "Der Kapitän kannte 東京.", "invoice QX-7741-B"]
ROUTE = "/v1/embeddings"


def own_vectors(texts: list[str]) -> Any:
    return HashEmbedder(dimension=EMBEDDING_WIDTH).embed_passages(texts)


def test_the_clients_vectors_are_the_embedders_in_both_spellings(url: str) -> None:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        # By default the client asks for base64 and unpacks it itself.
        for spelling in ({}, {"encoding_format": "float"}):
            reply = client.embeddings.create(model=EMBEDDER, input=TEXTS, **spelling)  # type: ignore[arg-type]
            assert (reply.object, reply.model) == ("list", EMBEDDER)
            assert [each.index for each in reply.data] == [0, 1, 2]
            assert np.array_equal(np.float32([each.embedding for each in reply.data]), own_vectors(TEXTS))
            # 5 words, 4 words, and 3 between hyphens and the space.
            assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (13, 13)
        one = client.embeddings.create(model=EMBEDDER, input=TEXTS[1], dimensions=EMBEDDING_WIDTH, user="ann")
        assert np.array_equal(np.float32(one.data[0].embedding), own_vectors(TEXTS)[1])
        spelled = client.embeddings.create(model=EMBEDDER, input=TEXTS[0], encoding_format="base64")
        raw: Any = spelled.data[0].embedding
        assert base64.b64decode(raw) == own_vectors(TEXTS)[0].astype("<f4").tobytes()


async def test_the_async_client(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        reply = await client.embeddings.create(model=EMBEDDER, input=TEXTS * 30)
        assert np.array_equal(np.float32([each.embedding for each in reply.data]), own_vectors(TEXTS * 30))


@pytest.mark.parametrize(
    ("change", "status", "param", "words"),
    [
        ({"model": MODEL}, 404, "model", f"use '{EMBEDDER}'"),
        ({"input": ""}, 400, "input.0", "a text that is empty"),
        ({"input": []}, 400, "input", "at least 1"),
        ({"input": ["a", ""]}, 400, "input.1", "a text that is empty"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, 400, "input", "at most 2048"),
        ({"input": [1, 2, 3]}, 400, "input", "send the text itself"),
        ({"input": [[1, 2], [3]]}, 400, "input", "check_embedding_ctx_length=False"),
        ({"input": 5}, 400, "input", "a text or a list of texts"),
        ({"input": "half \ud800"}, 400, "input.0", "half a surrogate pair"),
        ({"dimensions": 8}, 400, "dimensions", "have 16; leave it out"),
        ({"dimensions": 0}, 400, "dimensions", "greater than or equal to 1"),
        ({"encoding_format": "int8"}, 400, "encoding_format", "'float' or 'base64'"),
        ({"task": "search"}, 400, "task", "not a field that is known here"),
    ],
)
async def test_what_is_refused(
    client: httpx.AsyncClient, change: dict[str, Any], status: int, param: str, words: str
) -> None:
    reply = await client.post(ROUTE, content=json.dumps({"model": EMBEDDER, "input": "a", **change}).encode(),
                              headers={"content-type": "application/json"})  # fmt: skip
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param), error
    assert words in error["message"]


async def test_a_text_over_the_window_is_refused_and_one_of_its_length_is_not() -> None:
    embedder = MiniLMEmbedder()
    counts = embedder.count_tokens(["word", "word " * 254, "word " * 255, "word " * 3000])
    assert counts == [3, 256, 257, 3002]
    service = Embeddings(embedder)
    found = await service.embed(EmbeddingRequest(model=embedder.name, input=["word " * 254]))
    assert found.num_tokens == 256 and found.vectors.shape == (1, 384)
    with pytest.raises(RequestInvalid, match="input 1 has 257 tokens, but all-MiniLM-L6-v2 reads 256") as refused:
        await service.embed(EmbeddingRequest(model=embedder.name, input=["word", "word " * 255]))
    assert (refused.value.param, refused.value.code) == ("input.1", "context_length_exceeded")


async def test_a_request_has_a_bound_on_all_its_tokens() -> None:
    service = Embeddings(HashEmbedder(dimension=4))
    with pytest.raises(RequestInvalid, match="300001 tokens together") as refused:
        await service.embed(EmbeddingRequest(model="hash-4", input=["a " * 300_000, "a"]))
    assert refused.value.param == "input"


class Gated(HashEmbedder):
    """Computes a slice only when it is let."""

    def __init__(self) -> None:
        super().__init__(dimension=4)
        self.may_go = threading.Event()
        self.slices: list[int] = []

    def embed_passages(self, texts: Any) -> Any:
        self.slices.append(len(texts))
        assert self.may_go.wait(10)
        return super().embed_passages(texts)


async def test_the_event_loop_goes_on_and_one_request_is_computed_at_a_time() -> None:
    embedder = Gated()
    service = Embeddings(embedder)
    body = EmbeddingRequest(model="hash-4", input=["text"] * (SLICE_TEXTS + 1))
    first, second = (asyncio.create_task(service.embed(body)) for _ in range(2))
    while not embedder.slices:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert embedder.slices == [SLICE_TEXTS] and not first.done()
    first.cancel()  # as when its client leaves
    embedder.may_go.set()
    found = await second
    assert first.cancelled() and len(found.vectors) == SLICE_TEXTS + 1
    # Of the first request no further slice was computed.
    assert embedder.slices == [SLICE_TEXTS, SLICE_TEXTS, 1]


def test_every_field_of_the_installed_client_is_in_the_table_and_no_other() -> None:
    assert set(EMBEDDING_FIELDS) == set(embedding_create_params.EmbeddingCreateParams.__annotations__)
    honoured = {name for name, row in EMBEDDING_FIELDS.items() if row.treatment is Treatment.HONOURED}
    assert honoured == set(EmbeddingRequest.model_fields)


async def test_without_a_key_of_its_own_nobody_embeds(new_world: Any) -> None:
    async with open_client(new_world(api_key="secret")) as client:
        assert (await client.post(ROUTE, json={"model": EMBEDDER, "input": "a"})).status_code == 401
