"""No field of OpenAI's schema is accepted and ignored: the tables are held against the installed client."""

import typing
from typing import Any

import pytest
from openai.types.responses import (
    EasyInputMessageParam,
    FileSearchToolParam,
    FunctionToolParam,
    ResponseFileSearchToolCallParam,
    ResponseFunctionToolCallParam,
    ResponseIncludable,
    ResponseInputFileParam,
    ResponseInputTextParam,
    ResponseOutputMessageParam,
    ResponseOutputTextParam,
    ResponseTextConfigParam,
    ToolParam,
    input_token_count_params,
    response_create_params,
)
from openai.types.responses.file_search_tool_param import RankingOptions
from openai.types.responses.response_input_item_param import FunctionCallOutput, Message, ResponseInputItemParam
from pydantic import ValidationError

from server.chat.fields import ChatField, FieldRefused, Treatment, without_idle_fields
from server.errors import RequestInvalid
from server.responses import fields
from server.responses.input_items import ContentPart, InputItem
from server.responses.schema import CountRequest, ResponseRequest, TextFormat, TextOptions
from server.responses.tools import FileSearchTool, FunctionTool

Table = typing.Mapping[str, ChatField]
MINIMAL: dict[str, Any] = {"model": "m", "input": "Hello"}


def parameters(*kinds: Any) -> set[str]:
    return {name for kind in kinds for name in typing.get_type_hints(kind)}


def named(table: Table, treatment: Treatment) -> set[str]:
    return {name for name, row in table.items() if row.treatment is treatment}


def types_of(union: Any) -> set[str]:
    """The values that ``type`` has in the members of a union."""
    found: set[str] = set()
    for member in typing.get_args(union):
        hint = typing.get_type_hints(member)["type"]
        found |= set(typing.get_args(hint))
    return found


CREATE = parameters(
    response_create_params.ResponseCreateParamsNonStreaming, response_create_params.ResponseCreateParamsStreaming
)


@pytest.mark.parametrize(
    ("table", "known"),
    [
        (fields.RESPONSE_FIELDS, CREATE),
        (fields.COUNT_FIELDS, parameters(input_token_count_params.InputTokenCountParams)),
        (
            fields.MESSAGE_FIELDS,
            parameters(EasyInputMessageParam, Message, ResponseOutputMessageParam),
        ),
        (fields.SEARCH_CALL_FIELDS, parameters(ResponseFileSearchToolCallParam)),
        (
            fields.PART_FIELDS,
            parameters(ResponseInputTextParam, ResponseInputFileParam, ResponseOutputTextParam) | {"parsed"},
        ),
        (fields.FILE_SEARCH_FIELDS, parameters(FileSearchToolParam)),
        (fields.FUNCTION_FIELDS, parameters(FunctionToolParam)),
        (fields.FUNCTION_CALL_FIELDS, parameters(ResponseFunctionToolCallParam)),
        (fields.FUNCTION_OUTPUT_FIELDS, parameters(FunctionCallOutput)),
        (fields.RANKING_FIELDS, parameters(RankingOptions)),
        (fields.TEXT_FIELDS, parameters(ResponseTextConfigParam)),
    ],
)
def test_every_field_of_the_installed_client_is_in_the_table_and_no_other(table: Table, known: set[str]) -> None:
    assert set(table) == known


def test_the_honoured_fields_are_those_the_models_have() -> None:
    assert named(fields.RESPONSE_FIELDS, Treatment.HONOURED) == set(ResponseRequest.model_fields) - {"fano"}
    assert named(fields.COUNT_FIELDS, Treatment.HONOURED) == set(CountRequest.model_fields) - {"fano"}
    of_items = (
        *(fields.MESSAGE_FIELDS, fields.SEARCH_CALL_FIELDS),
        *(fields.FUNCTION_CALL_FIELDS, fields.FUNCTION_OUTPUT_FIELDS),
    )
    items = {name for table in of_items for name in named(table, Treatment.HONOURED)}
    assert items == set(InputItem.model_fields)
    assert named(fields.FUNCTION_FIELDS, Treatment.HONOURED) == set(FunctionTool.model_fields)
    assert named(fields.PART_FIELDS, Treatment.HONOURED) == set(ContentPart.model_fields)
    assert named(fields.FILE_SEARCH_FIELDS, Treatment.HONOURED) == set(FileSearchTool.model_fields)
    assert named(fields.TEXT_FIELDS, Treatment.HONOURED) == set(TextOptions.model_fields)


def test_every_type_of_tool_and_inclusion_is_known() -> None:
    assert set(fields.TOOLS_REFUSED) >= types_of(ToolParam) - {"file_search", "function"}
    assert {*fields.INCLUDED, *fields.NEVER_OCCURS} == set(typing.get_args(ResponseIncludable))
    for kind in types_of(ToolParam) - {"file_search", "function"}:
        with pytest.raises(FieldRefused) as refused:
            ResponseRequest.model_validate(MINIMAL | {"tools": [{"type": kind}]})
        assert refused.value.param == "tools.0.type"
        with pytest.raises((FieldRefused, ValidationError)) as choice:
            ResponseRequest.model_validate(MINIMAL | {"tool_choice": {"type": kind}})
        assert "tool_choice" in str(choice.value)
    ResponseRequest.model_validate(MINIMAL | {"include": [*fields.INCLUDED, *fields.NEVER_OCCURS]})


def test_every_other_type_of_item_is_refused_by_its_path() -> None:
    kinds = types_of(ResponseInputItemParam) - {
        *("message", "file_search_call", "function_call", "function_call_output"),
    }
    assert "reasoning" in kinds and "custom_tool_call_output" in kinds
    for kind in kinds:
        with pytest.raises(FieldRefused) as refused:
            ResponseRequest.model_validate({"model": "m", "input": ["x", {"type": kind, "id": "x"}]})
        assert refused.value.param == "input.1.type"


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (table, name)
        for table in (
            fields.RESPONSE_FIELDS,
            fields.COUNT_FIELDS,
            fields.PART_FIELDS,
            fields.RANKING_FIELDS,
            fields.TEXT_FIELDS,
            fields.FUNCTION_FIELDS,
            fields.FUNCTION_CALL_FIELDS,
            fields.FUNCTION_OUTPUT_FIELDS,
        )
        for name in sorted(named(table, Treatment.REFUSED))
    ],
)
def test_a_refused_field_is_named_and_its_idle_values_pass(table: Table, name: str) -> None:
    with pytest.raises(FieldRefused) as refused:
        without_idle_fields({name: "something"}, table)
    assert refused.value.param == name and table[name].reason in str(refused.value)
    for idle in (None, *table[name].harmless):
        assert without_idle_fields({name: idle}, table) == {}


@pytest.mark.parametrize("name", sorted(named(fields.RESPONSE_FIELDS, Treatment.NEUTRAL)))
def test_a_neutral_field_is_taken_away(name: str) -> None:
    plain = MINIMAL | {"stream": True}
    request = ResponseRequest.model_validate(plain | {name: {"any": "thing"}})
    assert request == ResponseRequest.model_validate(plain)


def part(**changes: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"} | changes]}]}


def search(**changes: Any) -> dict[str, Any]:
    return {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]} | changes]}


def form(**changes: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "x"} | changes}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True, "store": False}, "store"),
        ({"background_options": {"x": 1}}, "background_options"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        (part(detail="high", type="input_file"), "input.0.content.0.detail"),
        (part(type="input_file", file_url="http://x"), "input.0.content.0.file_url"),
        (part(type="input_image"), "input.0.content.0.type"),
        (part(type="refusal"), "input.0.content.0.type"),
        (search(ranking_options={"hybrid_search": {"embedding_weight": 1, "text_weight": 1}}),
         "tools.0.ranking_options.hybrid_search"),
        ({"tools": [*search()["tools"], *search()["tools"]]}, "tools.1"),
        (search(filters={"type": "eq"}), "tools.0.filters.key"),
        (search(vector_store_ids=[]), "tools.0.vector_store_ids"),
        (search(max_num_results=51), "tools.0.max_num_results"),
        (search(ranking_options={"score_threshold": 2}), "tools.0.ranking_options.score_threshold"),
        ({"tools": [{"type": "telepathy"}]}, "tools.0.type"),
        ({"tools": [{}]}, "tools.0.type"),
        (form(schema={"title": "\ud83d"}), "text.format.schema"),
        (form(schema={"maximum": float("inf")}), "text.format.schema"),
        (form(), "text.format.schema"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_by_its_path(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestInvalid) as refused:
        ResponseRequest.model_validate(MINIMAL | body)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"input": []}, ("input",)),
        ({"input": 7}, ("input",)),
        ({"input": [7]}, ("input", 0)),
        ({"input": [{"role": "user"}]}, ("input", 0)),
        ({"input": [{"role": "critic", "content": "Hi"}]}, ("input", 0, "role")),
        ({"input": [{"role": "user", "content": "Hi", "queries": ["a"]}]}, ("input", 0)),
        ({"input": [{"type": "file_search_call"}]}, ("input", 0)),
        (part(extra=1), ("input", 0, "content", 0, "extra")),
        (part(type="video"), ("input", 0, "content", 0, "type")),
        (part(text=None), ("input", 0, "content", 0)),
        (part(type="input_file"), ("input", 0, "content", 0)),
        (part(type="input_file", text=None), ("input", 0, "content", 0)),
        (part(type="input_file", text=None, file_id="f", file_data="d"), ("input", 0, "content", 0)),
        (part(type="input_file", text=None, file_data="d"), ("input", 0, "content", 0)),
        ({"input": [{"role": "assistant", "content": [{"type": "input_file", "file_id": "f"}]}]}, ("input", 0)),
        ({"input": "half \ud83d"}, ("input", 0, "content")),
        ({"tool_choice": "perhaps"}, ("tool_choice",)),
        ({"tool_choice": {"type": []}}, ("tool_choice",)),
        ({"previous_response_id": "\ud83d"}, ("previous_response_id",)),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, ("tool_choice",)),
        ({"include": ["everything"]}, ("include", 0)),
        ({"metadata": {"k": 1}}, ("metadata", "k")),
        ({"metadata": {str(n): "" for n in range(17)}}, ("metadata",)),
        ({"max_output_tokens": 0}, ("max_output_tokens",)),
        ({"temperature": 3}, ("temperature",)),
        ({"truncation": "middle"}, ("truncation",)),
        ({"max_tokens": 3}, ("max_tokens",)),
    ],
)
def test_an_error_has_the_path_of_the_field(body: dict[str, Any], path: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as invalid:
        ResponseRequest.model_validate(MINIMAL | body)
    assert invalid.value.errors()[0]["loc"] == path


def test_what_asks_for_nothing_passes() -> None:
    idle = {"tools": [], "tool_choice": "auto", "reasoning": {"effort": None, "summary": None}, "background": False}
    assert ResponseRequest.model_validate(MINIMAL | {"reasoning": {"effort": "none", "context": None}}).tools == []
    assert ResponseRequest.model_validate(MINIMAL | idle).file_search is None
    assert ResponseRequest.model_validate(MINIMAL | {"tools": None}).tools == []
    assert ResponseRequest.model_validate(MINIMAL | {"text": {"format": {"type": "text"}}}).form == TextFormat()
