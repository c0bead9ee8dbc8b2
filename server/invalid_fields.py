"""What is wrong with the fields of a request, in words: the path, the value, what was expected and what to do."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import RequestInvalid
from server.schemas import SESSION_NAME

# The longest text of a client that an error repeats.
SHOWN_CHARACTERS = 64

CODES_BY_TYPE = {"extra_forbidden": "unknown_field", "missing": "missing_field"}


def invalid_fields(errors: Sequence[Mapping[str, Any]], content_type: str | None) -> RequestInvalid:
    """Validation errors as one: the first is blamed, the next ones are told, each with a value that is short.

    Every error's ``loc`` begins with the part of the request: body, query or path.
    """
    # A body that two dependencies read is reported twice.
    errors = list({(each["loc"], each["type"]): each for each in errors}.values())
    first = errors[0]
    if first["type"] == "json_invalid":
        return RequestInvalid(
            f"the body is not valid JSON: {first.get('ctx', {}).get('error', '')}", None, "invalid_json"
        )
    if list(first["loc"]) == ["body"] and "json" not in (content_type or ""):
        return RequestInvalid("send a JSON object with the header Content-Type: application/json", None, "invalid_body")
    told = [f"{_path(each['loc']) or 'the body'} {_words(each)}" for each in errors[:3]]
    more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    code = CODES_BY_TYPE.get(first["type"], "invalid_value")
    return RequestInvalid("; ".join(told) + more, _path(first["loc"]), code)


def _path(location: tuple[int | str, ...]) -> str | None:
    """``("body", "messages", 0, "content")`` as ``messages.0.content``."""
    return ".".join(str(part) for part in location[1:]) or None


def _words(error: Mapping[str, Any]) -> str:
    """What is wrong with the field, what was expected and what to do, after its path."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "is not a field that is known here; leave it out"
    if kind == "missing":
        return "is missing; add it"
    if kind == "string_pattern_mismatch":
        return _unlike(str(context.get("pattern")), error.get("input"))
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length") if kind == "too_short" else context.get("max_length")
        side = "at least" if kind == "too_short" else "at most"
        unit = "characters" if isinstance(error.get("input"), str) else "items"
        return f"has {context.get('actual_length')} {unit}, expected {side} {bound}"
    if kind == "value_error":
        return _in_own_words(str(error["msg"]).removeprefix("Value error, "), error.get("input"))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"is {_shown(error.get('input'))}, expected an object"
    message = str(error["msg"]).removeprefix("Input should be ")
    expected = message if message[:1].isupper() else f"expected {message}"
    if expected is message:
        expected = message[:1].lower() + message[1:]
    return f"is {_shown(error.get('input'))}, {expected}"


def _unlike(pattern: str, value: object) -> str:
    """A text that is not of the form it should have."""
    if pattern == r"\S":
        return "is blank, expected text"
    if pattern == r"[^\W_]":
        return f"is {_shown(value)}, expected a letter or a digit in it"
    if pattern.endswith(SESSION_NAME):
        return f"is {_shown(value)}, expected 1 to 128 letters (a to z), digits, '.', '_' and '-', the first no sign"
    return f"is {_shown(value)}, expected a text that matches {pattern}"


def _in_own_words(message: str, value: object) -> str:
    """What a validator of the schemas says: what is so, what was expected, what the value should be, or a rule."""
    if message.startswith(("has ", "holds ")):
        return message
    if message.startswith("expected "):
        return f"is {_shown(value)}, {message}"
    if message.startswith(("should ", "must ")):
        return f"is {_shown(value)}, which {message}"
    return f"breaks a rule: {message}"


def _shown(value: object) -> str:
    """A number or a short text as it was sent; of anything longer only its kind, for it may be a whole document."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= SHOWN_CHARACTERS else f"a text of {len(value)} characters"
    return "an array" if isinstance(value, list) else "an object"
