"""One thing of every kind that a tenant can have, made over HTTP, as far as the app makes such things."""

from typing import Any

import httpx
from fakes_server import MODEL

# Which kind of thing a parameter of a path names; None is nobody's own.
KINDS = {
    "document_id": "document",
    "fact_id": "fact",
    "name": "session",
    "file_id": "file",
    "upload_id": "upload",
    "store_id": "vector_store",
    "batch_id": "batch",
    "response_id": "response",
    "model_id": None,
    "asset": None,
}
HELLO = [{"role": "user", "content": "Hello there, who is it?"}]


async def made_by(client: httpx.AsyncClient, tenant: str, paths: set[str]) -> dict[str, str]:
    """One thing of every kind, made over HTTP; returns its id by its kind."""

    async def post(path: str, **request: Any) -> dict[str, Any]:
        reply = await client.post(path, **request)
        assert reply.is_success, (path, reply.text)
        told: dict[str, Any] = reply.json()
        return told

    text = f"Invoice QX-7741-B of {tenant} was paid by Margarethe Oldenkamp on 5 March 2024."
    document = (await post("/v1/documents", json={"text": text, "name": f"{tenant}.txt"}))["id"]
    async with client.stream("GET", f"/v1/documents/{document}/events") as events:
        async for _ in events.aiter_lines():
            pass
    fact = (await post(f"/v1/documents/{document}/facts", json={"start": 8, "end": 17, "key": tenant}))["id"]
    session = f"talk-of-{tenant}"
    await post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "fano": {"session": session}})
    await post(f"/v1/sessions/{session}/save")
    ids = {"document": document, "fact": fact, "session": session}
    if "/v1/files" in paths:
        sent = {"data": {"purpose": "assistants"}, "files": {"file": (f"{tenant}.txt", f"More. {text}".encode())}}
        ids["file"] = (await post("/v1/files", **sent))["id"]
    if "/v1/uploads" in paths:
        asked = {"filename": f"{tenant}-2.txt", "purpose": "assistants", "bytes": 4, "mime_type": "text/plain"}
        ids["upload"] = (await post("/v1/uploads", json=asked))["id"]
        ids["part"] = (await post(f"/v1/uploads/{ids['upload']}/parts", files={"data": ("part", b"part")}))["id"]
    if "/v1/vector_stores" in paths:
        ids["vector_store"] = store = (await post("/v1/vector_stores", json={"name": tenant}))["id"]
        batch = await post(f"/v1/vector_stores/{store}/file_batches", json={"file_ids": [ids["file"]]})
        ids["batch"] = batch["id"]
    if "/v1/responses" in paths:
        ids["response"] = (await post("/v1/responses", json={"model": MODEL, "input": "Hello"}))["id"]
    return ids
