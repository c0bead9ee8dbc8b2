"""No field of OpenAI's schema is accepted and ignored: the table is held against the installed client."""

import typing
from typing import Any

import pytest
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
    completion_create_params,
)

from server.chat.fields import CHAT_FIELDS, MESSAGE_FIELDS, FieldRefused, Treatment, without_idle_fields
from server.chat.schema import ChatMessage, ChatRequest

# Not in OpenAI's schema, but in what many clients send.
WIDELY_SENT = {"min_p", "prompt_logprobs", "repetition_penalty", "return_progress", "top_k"}
MESSAGES = [{"role": "user", "content": "Hello"}]


def parameters(kind: Any) -> set[str]:
    return set(typing.get_type_hints(kind))


def named(table: Any, treatment: Treatment) -> set[str]:
    return {name for name, row in table.items() if row.treatment is treatment}


def test_every_field_of_the_installed_client_is_in_the_table_and_no_other() -> None:
    known = parameters(completion_create_params.CompletionCreateParamsNonStreaming)
    known |= parameters(completion_create_params.CompletionCreateParamsStreaming)
    assert set(CHAT_FIELDS) == known | WIDELY_SENT


def test_the_honoured_fields_are_those_the_request_has() -> None:
    assert named(CHAT_FIELDS, Treatment.HONOURED) == set(ChatRequest.model_fields) - {"fano"}
    assert named(MESSAGE_FIELDS, Treatment.HONOURED) == set(ChatMessage.model_fields)


def test_every_field_of_the_messages_that_are_taken_is_in_the_table() -> None:
    known: set[str] = set()
    for kind in (
        ChatCompletionDeveloperMessageParam,
        ChatCompletionSystemMessageParam,
        ChatCompletionUserMessageParam,
        ChatCompletionAssistantMessageParam,
    ):
        known |= parameters(kind)
    assert known <= set(MESSAGE_FIELDS)


@pytest.mark.parametrize("field", sorted(named(CHAT_FIELDS, Treatment.REFUSED)))
def test_a_refused_field_is_named_and_its_idle_values_pass(field: str) -> None:
    with pytest.raises(FieldRefused) as refused:
        without_idle_fields({field: "something"}, CHAT_FIELDS)
    assert refused.value.param == field and CHAT_FIELDS[field].reason in str(refused.value)
    for idle in (None, *CHAT_FIELDS[field].harmless):
        assert without_idle_fields({field: idle}, CHAT_FIELDS) == {}


@pytest.mark.parametrize("field", sorted(named(CHAT_FIELDS, Treatment.NEUTRAL)))
def test_a_neutral_field_is_taken_away(field: str) -> None:
    request = ChatRequest.model_validate({"model": "m", "messages": MESSAGES, field: "anything"})
    assert request == ChatRequest.model_validate({"model": "m", "messages": MESSAGES})


def test_zero_is_not_false() -> None:
    with pytest.raises(FieldRefused):
        without_idle_fields({"store": 0}, CHAT_FIELDS)
    assert without_idle_fields({"store": False}, CHAT_FIELDS) == {}


def test_a_reply_may_come_back_in_a_history_as_the_client_dumps_it() -> None:
    message = {
        "role": "assistant",
        "content": "noon",
        "refusal": None,
        "annotations": [{"type": "file_citation"}],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    request = ChatRequest.model_validate({"model": "m", "messages": [*MESSAGES, message]})
    assert request.messages[1] == ChatMessage.model_validate({"role": "assistant", "content": "noon"})


def test_an_unknown_field_is_left_for_validation_to_refuse() -> None:
    assert without_idle_fields({"nn": 1, "store": False}, CHAT_FIELDS) == {"nn": 1}
