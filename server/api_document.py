"""The OpenAPI document, as the server behaves: keys, the refusals any route may answer, and none it never does."""

from typing import Any

from fastapi import FastAPI
from typing_extensions import override

# What comes before any route: a wrong host without keys, a body over the limit, and defects.
_EVERYWHERE = {"403": "Without keys, another host or site is named", "500": "A defect of the server; its log has it"}
_OF_BODIES = {"400": "The body or a field of it cannot be used", "413": "The body is too large"}
_KEYLESS = ("/healthz", "/readyz", "/console/{asset}")


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
    components["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key of `fano keys add`; any, where there are none.",
        }
    }
    envelope = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            replies = operation["responses"]
            replies.pop("422", None)
            told = _EVERYWHERE | (_OF_BODIES if "requestBody" in operation else {})
            for status, words in told.items():
                replies.setdefault(status, {"description": words, "content": envelope})
            if path not in _KEYLESS:
                operation["security"] = [{"key": []}]
