"""Each field of OpenAI's chat completion request: honoured, harmlessly neutral, or refused by name.

The one table of it. A field is neutral when ignoring it cannot change what the client gets; a field
that is refused may still be sent with the values that ask for nothing (``tools: []``, ``store: false``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from server.errors import RequestInvalid


class Treatment(StrEnum):
    """What becomes of a field."""

    HONOURED = "honoured"
    NEUTRAL = "neutral"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ChatField:
    """``harmless`` lists the values of a refused field that ask for nothing; None always does."""

    treatment: Treatment
    reason: str = ""
    harmless: tuple[object, ...] = field(default=())


HONOURED = ChatField(Treatment.HONOURED)


def _neutral(reason: str) -> ChatField:
    return ChatField(Treatment.NEUTRAL, reason)


def _refused(reason: str, *harmless: object) -> ChatField:
    return ChatField(Treatment.REFUSED, reason, harmless)


WHERE_TAUGHT = (
    "where the checkpoint's chat template teaches calls as `<tool_call>`; refused by name with any other, such as the "
    "embedded model's"
)

PROGRESS = (
    "in streams: how far the prompt is read, about once a second; null tells it of prompts longer than the window alone"
)

CHAT_FIELDS: Mapping[str, ChatField] = {
    "messages": HONOURED,
    "model": HONOURED,
    "max_completion_tokens": HONOURED,
    "max_tokens": HONOURED,
    "seed": HONOURED,
    "stop": HONOURED,
    "stream": HONOURED,
    "stream_options": HONOURED,
    "temperature": HONOURED,
    "top_p": HONOURED,
    "parallel_tool_calls": HONOURED,
    "tool_choice": HONOURED,
    "tools": ChatField(Treatment.HONOURED, WHERE_TAUGHT),
    "frequency_penalty": HONOURED,
    "logit_bias": HONOURED,
    "logprobs": HONOURED,
    "n": HONOURED,
    "presence_penalty": HONOURED,
    "response_format": HONOURED,
    "top_logprobs": HONOURED,
    # Not OpenAI's, but sent by many clients: as vLLM names them.
    "min_p": HONOURED,
    "prompt_logprobs": HONOURED,
    "repetition_penalty": HONOURED,
    "top_k": HONOURED,
    # As llama.cpp names it.
    "return_progress": ChatField(Treatment.HONOURED, PROGRESS),
    "metadata": _neutral("labels of stored completions, and none are stored"),
    "prompt_cache_key": _neutral("a routing hint"),
    "prompt_cache_options": _neutral("a caching hint"),
    "prompt_cache_retention": _neutral("a caching hint"),
    "safety_identifier": _neutral("names the user to a provider"),
    "service_tier": _neutral("there is one tier"),
    "user": _neutral("names the user to a provider"),
    "audio": _refused("this model has no audio"),
    "function_call": _refused("functions are not called", "none", "auto"),
    "functions": _refused("functions are not called", []),
    "modalities": _refused("only text is written", ["text"]),
    "moderation": _refused("nothing is moderated"),
    "prediction": _refused("predicted output is not used"),
    "reasoning_effort": _refused("this model does not reason in steps", "none"),
    "store": _refused("completions are not stored", False),
    "verbosity": _refused("verbosity is not adjusted", "medium"),
    "web_search_options": _refused("the web is not searched"),
}

# Fields of a message. Null, and what a reply of this server carries itself, may come back in a history.
MESSAGE_FIELDS: Mapping[str, ChatField] = {
    "role": HONOURED,
    "content": HONOURED,
    "annotations": _neutral("citations of an earlier reply"),
    "audio": _refused("this model has no audio"),
    "function_call": _refused("functions are not called"),
    "name": _refused("participants have no names here"),
    "prompt_cache_breakpoint": _neutral("a caching hint"),
    "refusal": _refused("this model makes no refusals", ""),
    "tool_call_id": ChatField(Treatment.HONOURED, WHERE_TAUGHT),
    "tool_calls": ChatField(Treatment.HONOURED, WHERE_TAUGHT),
}


class FieldRefused(RequestInvalid):
    """A known field asks for something that is not done here."""

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(f"{param} is not supported: {reason}; leave it out", param, "unsupported_field")


def without_idle_fields(fields: Mapping[str, Any], table: Mapping[str, ChatField], path: str = "") -> dict[str, Any]:
    """The fields to validate: the honoured, and the unknown so that they are refused as such.

    Raises ``FieldRefused`` for a refused field with a value that asks for something.
    """
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        row = table.get(name, HONOURED)
        if row.treatment is Treatment.HONOURED:
            kept[name] = value
        elif row.treatment is Treatment.REFUSED and not _is_harmless(value, row.harmless):
            raise FieldRefused(f"{path}{name}", row.reason)
    return kept


def _is_harmless(value: object, harmless: tuple[object, ...]) -> bool:
    # In Python False equals 0, and `store: 0` is not `store: false`.
    return value is None or any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless
    )
