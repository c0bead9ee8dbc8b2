"""The OpenAPI document, as the server behaves and in words: keys, refusals with their codes, tags, fields, examples."""

from typing import Any

from fastapi import FastAPI
from typing_extensions import override

from server.error_table import codes_by_status
from server.reference.examples import EXAMPLES
from server.reference.field_words import FIELDS, OWN
from server.reference.words import PARAMETERS, STATUSES

# What comes before any route: a wrong host without keys, a body over the limit or packed, and defects.
_EVERYWHERE = ("403", "500")
_OF_BODIES = ("400", "413", "415")
_KEYLESS = ("/healthz", "/readyz", "/console/{asset}")
_GENERIC = "Successful Response"


class DocumentedApp(FastAPI):
    """FastAPI, with a document that says what the server does."""

    @override
    def openapi(self) -> dict[str, Any]:
        """The document, made at the first call."""
        is_made = self.openapi_schema is not None
        document = super().openapi()
        if not is_made:
            _amend(document)
        return document


def _amend(document: dict[str, Any]) -> None:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    # Validation errors are answered 400 in the one envelope, not 422 in the framework's.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for name, schema in schemas.items():
        _describe(name, schema)
    components["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key of `fano keys add`; any, where there are none.",
        }
    }
    envelope = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            replies = operation["responses"]
            replies.pop("422", None)
            for status in (*_EVERYWHERE, *(_OF_BODIES if "requestBody" in operation else ())):
                replies.setdefault(status, {"content": envelope})
            for status, reply in replies.items():
                reply["description"] = _told(status, reply, schemas)
            for parameter in operation.get("parameters", ()):
                parameter.setdefault("description", PARAMETERS.get(parameter["name"], ""))
            if path not in _KEYLESS:
                operation["security"] = [{"key": []}]
            if (examples := EXAMPLES.get((method, path))) is not None:
                (content,) = operation["requestBody"]["content"].values()
                content["examples"] = {each["summary"]: each for each in examples}


def _describe(schema_name: str, schema: dict[str, Any]) -> None:
    for name, field in schema.get("properties", {}).items():
        words = OWN.get(f"{schema_name}.{name}", FIELDS.get(name))
        if words is not None:
            field.setdefault("description", words)


def _told(status: str, reply: dict[str, Any], schemas: dict[str, Any]) -> str:
    """What a reply is: an error with the codes that it may have, else what its object is."""
    if status in STATUSES:
        codes = ", ".join(f"`{code}`" for code in codes_by_status(int(status)))
        return f"{STATUSES[status]}. `code`: {codes}." if codes else f"{STATUSES[status]}."
    words: str = reply.get("description") or _GENERIC
    if words != _GENERIC:
        return words
    schema = reply.get("content", {}).get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    return str(schemas[name].get("description", "A page of a list.")) if name else "What the route promises."
