"""Items of a response's input and output as they are listed."""

import secrets
from typing import Any


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}_{secrets.token_urlsafe(18)}"


def call_view(item_id: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    """A call of a function."""
    told = {"id": item_id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
    return told | {"status": status}
