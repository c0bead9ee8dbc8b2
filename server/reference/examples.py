"""Requests of the ten common tasks, for the reference: those of docs/api.md, with ids that stand for real ones."""

from collections.abc import Mapping
from typing import Any

MODEL = "fano-reader"
FILE, STORE, RESPONSE = "file-9QjWm2", "vs_4kTz81", "resp_7Lr0aa"
WHO = "Who paid invoice QX-7741-B?"
ANIMAL = {
    "type": "object",
    "properties": {"name": {"enum": ["cat", "dog"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 4}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def _example(summary: str, **value: object) -> dict[str, Any]:
    return {"summary": summary, "value": value}


# By method and path.
EXAMPLES: Mapping[tuple[str, str], tuple[dict[str, Any], ...]] = {
    ("post", "/v1/chat/completions"): (
        _example(
            "Chat, as it is written",
            model=MODEL,
            messages=[{"role": "user", "content": "Hello!"}],
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        ),
        _example(
            "Ask about a file",
            model=MODEL,
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "file", "file": {"file_id": FILE}}, {"type": "text", "text": WHO}],
                }
            ],
            fano={"recall": "verbatim"},
        ),
        _example(
            "Get JSON of a form",
            model=MODEL,
            messages=[{"role": "user", "content": "An animal, as JSON."}],
            max_tokens=200,
            response_format={"type": "json_schema", "json_schema": {"name": "animal", "schema": ANIMAL}},
        ),
    ),
    ("post", "/v1/responses"): (
        _example(
            "Ask the files of a vector store",
            model=MODEL,
            input=WHO,
            tools=[{"type": "file_search", "vector_store_ids": [STORE]}],
            include=["file_search_call.results"],
        ),
        _example("Go on with a conversation", model=MODEL, input="And good night!", previous_response_id=RESPONSE),
        _example("In the background", model=MODEL, input="Write a long text.", background=True),
        _example("With functions, where the chat template teaches calls", model=MODEL, input="Rain?", tools=[WEATHER]),
    ),
    ("post", "/v1/vector_stores"): (
        _example("Keep files in a vector store", name="leases", file_ids=[FILE]),
        _example(
            "Cut in pieces of a fixed size",
            name="leases",
            file_ids=[FILE],
            chunking_strategy={
                "type": "static",
                "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400},
            },
        ),
    ),
    ("post", "/v1/vector_stores/{store_id}/search"): (
        _example("Search without asking a model", query="QX-7741-B", max_num_results=3),
        _example("Only some of the files", query=WHO, filters={"type": "gte", "key": "year", "value": 2024}),
    ),
    ("post", "/v1/embeddings"): (
        _example(
            "Turn texts into vectors",
            model="all-MiniLM-L6-v2",
            input=["The mill was let.", "The mill was leased."],
        ),
    ),
    ("post", "/v1/completions"): (
        _example(
            "Go on with a text as it stands",
            model=MODEL,
            prompt="The harbour was",
            max_tokens=4,
            n=2,
            seed=1,
            logprobs=2,
        ),
    ),
    ("post", "/v1/plan"): (
        _example("What a request will cost", messages=[{"role": "user", "content": "Hello!"}], max_tokens=100),
    ),
}
