"""Nothing a client sends is a 500: bodies made of the right and the wrong fields with values of every kind."""

import json
from typing import Any

import pytest
from fakes_server import MODEL, WorldMaker, open_client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.chat.fields import CHAT_FIELDS, MESSAGE_FIELDS

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", "user", "text", MODEL, "grounded", "verbatim", "window", 10**400, -1, 0, "\x00"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
NAMES = sorted({*CHAT_FIELDS, *MESSAGE_FIELDS, "fano", "documents", "question", "recall", "text", "policy", "window"})
OBJECTS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant", "tool"]), "content": VALUES}),
    max_size=3,
)
CHATS = st.builds(
    lambda base, rest: {**base, **rest},
    st.fixed_dictionaries({"model": st.just(MODEL), "messages": MESSAGES}, optional={"fano": OBJECTS}),
    OBJECTS,
)
PATHS = st.sampled_from(["/v1/chat/completions", "/v1/ask", "/v1/documents/doc_1/ask", "/v1/documents"])


@pytest.fixture
def send(new_world: WorldMaker) -> Any:
    async def send_all(requests: list[tuple[str, Any]]) -> list[tuple[int, str]]:
        async with open_client(new_world()) as client:
            replies = []
            for path, body in requests:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                reply = await client.post(path, content=content, headers={"content-type": "application/json"})
                replies.append((reply.status_code, reply.text))
        return replies

    return send_all


REQUESTS = st.lists(
    st.tuples(PATHS, OBJECTS | VALUES | st.binary(max_size=20)) | st.tuples(st.just("/v1/chat/completions"), CHATS),
    min_size=10,
    max_size=20,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=REQUESTS)
def test_every_body_is_answered_and_none_with_a_500(send: Any, requests: list[tuple[str, Any]]) -> None:
    import asyncio

    for (status, text), request in zip(asyncio.run(send(requests)), requests, strict=True):
        assert status in (200, 202, 400, 404, 409, 413), (request, text)
        if status >= 400:
            assert set(json.loads(text)["error"]) >= {"message", "type", "param", "code"}
