"""The reference at /docs: everything in it has words, its examples are requests, and it asks nothing of anyone else."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes_routes import routes_of
from fakes_server import MODEL, World, open_client

from server.error_table import refusal_codes
from server.reference.examples import EXAMPLES
from server.reference.field_words import FIELDS, OWN
from server.reference.words import PARAMETERS, TAGS
from server.routes.reference import PAGE

ASSET = re.compile(r'(?:src|href)="([^"]+)"')


@pytest.fixture
def document(world: World) -> dict[str, Any]:
    return world.app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_every_route_parameter_reply_and_tag_has_words(document: dict[str, Any], world: World) -> None:
    told = {(method.upper(), path) for method, path, _ in operations(document)}
    assert told == set(routes_of(world.app))
    tags = {each["name"]: each["description"] for each in document["tags"]}
    codes = set()
    for method, path, operation in operations(document):
        assert operation["description"].strip(), (method, path)
        assert operation["tags"] and all(tags[tag] for tag in operation["tags"]), (method, path)
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (method, path, parameter["name"])
        for status, reply in operation["responses"].items():
            assert reply["description"] and reply["description"] != "Successful Response", (method, path, status)
            assert status < "400" or "`code`:" in reply["description"] or status == "401", (method, path, status)
            codes |= set(re.findall("`([a-z_]+)`", reply["description"])) if status >= "400" else set()
    assert set(tags) == {tag for _, _, operation in operations(document) for tag in operation["tags"]}
    # What no route declares is what nobody is told: the client has left, or the framework answers.
    silent = {"client_left", "unknown_route", "method_not_allowed", "http_error", "server_error", "reader_stalled"}
    assert set(refusal_codes()) - codes <= silent, set(refusal_codes()) - codes


def test_every_field_has_words_and_all_words_are_of_fields(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    fields = [(name, field, schema["properties"][field]) for name, schema in schemas.items()
              for field in schema.get("properties", {})]  # fmt: skip
    silent = [f"{name}.{field}" for name, field, told in fields if not told.get("description")]
    assert silent == [], "write them down in server/reference/field_words.py"
    assert set(FIELDS) <= {field for _, field, _ in fields}
    assert set(OWN) <= {f"{name}.{field}" for name, field, _ in fields}
    parameters = {each["name"] for _, _, one in operations(document) for each in one.get("parameters", ())}
    assert set(PARAMETERS) == parameters
    assert [each["name"] for each in TAGS] == [each["name"] for each in document["tags"]]


def test_a_key_is_asked_for_wherever_one_is_needed(document: dict[str, Any]) -> None:
    (scheme,) = document["components"]["securitySchemes"]
    without = {path for _, path, operation in operations(document) if {scheme: []} not in operation.get("security", [])}
    assert without == {"/healthz", "/readyz", "/console/{asset}"}


async def test_examples_are_requests(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    tasks = 0
    for (method, path), examples in EXAMPLES.items():
        content = document["paths"][path][method]["requestBody"]["content"]["application/json"]
        assert [each["value"] for each in content["examples"].values()] == [each["value"] for each in examples]
        for example in examples:
            tasks += 1
            body = dict(example["value"])
            if "model" in body:
                body["model"] = "hash-16" if path == "/v1/embeddings" else MODEL
            reply = await client.request(method, path.replace("{store_id}", "vs_none"), json=body)
            # An id of the example is of nothing here, and this model was not taught to call functions.
            is_fine = reply.status_code in (200, 404) or reply.json()["error"]["param"] == "tools.0.type"
            assert is_fine, (path, example, reply.text)
    assert tasks >= 10


async def test_the_page_loads_from_here_alone(world: World) -> None:
    async with open_client(world) as client:
        reply = await client.get("/docs")
        assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "http" not in policy and "*" not in policy
        assert "validatorUrl: null" in PAGE and "//" not in re.sub("// .*", "", PAGE)
        for asset in ASSET.findall(reply.text):
            told = await client.get(f"/{asset}")
            assert told.status_code == 200, asset
            again = await client.get(f"/{asset}", headers={"if-none-match": told.headers["etag"]})
            assert again.status_code == 304
        assert (await client.get("/openapi.json")).status_code == 200
