"""Replies of a form: whatever a model of random weights draws is valid under the schema, or a beginning of what is."""

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from fakes_world import World, make_world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.config import EngineConfig
from model.engine.request import FinishReason, GenerationRequest, SamplingParams
from model.errors import ConstraintFailed, InvalidRequest
from model.kernels import REFERENCE
from model.tokenizer import Tokenizer
from server.chat.grammar import Grammar, Grammars
from server.errors import RequestInvalid

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
PROMPT = (3, 4, 5, 6)

NAMES = st.sampled_from(["a", "b", "name", "x y", "é"])
LEAVES = st.one_of(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": ["null", "boolean"]},
            {"type": "string", "pattern": "^[a-c]{2,4}$"},
            {"type": "string", "pattern": "[0-9]-x"},
            {"type": "string", "format": "date"},
            {"type": "string", "maxLength": 4},
        ]
    ),
    st.builds(
        lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, *[st.integers(-999, 999)] * 2
    ),
    st.builds(lambda step: {"type": "integer", "multipleOf": step, "minimum": 0, "maximum": 500}, st.integers(1, 20)),
    st.builds(
        lambda a, b: {"type": "string", "minLength": min(a, b), "maxLength": max(a, b)}, *[st.integers(0, 5)] * 2
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(st.integers(-5, 5), st.text(max_size=4), st.none(), st.booleans()), min_size=1, max_size=3),
    ),
    st.builds(lambda value: {"const": value}, st.one_of(st.text(max_size=4), st.lists(st.integers(0, 3), max_size=2))),
)


def objects(properties: dict[str, Any], required: set[str], is_open: bool, most: int | None) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "additionalProperties": is_open}
    schema["required"] = [name for name in properties if name in required]
    return schema if most is None else {**schema, "maxProperties": most}


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            objects,
            st.dictionaries(NAMES, inner, max_size=3),
            st.sets(NAMES),
            st.booleans(),
            st.none() | st.integers(0, 3),
        ),
        st.builds(
            lambda items, a, b: {"type": "array", "items": items, "minItems": min(a, b), "maxItems": max(a, b)},
            inner,
            *[st.integers(0, 2)] * 2,
        ),
        st.builds(lambda each: {"anyOf": each}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda each: {"allOf": each}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=5,
)
SAMPLINGS = (
    SamplingParams(max_tokens=160, temperature=0.0),
    SamplingParams(max_tokens=160, temperature=1.0, seed=1, logprobs=2),
    SamplingParams(max_tokens=160, temperature=2.0, seed=2, top_p=0.9, min_p=0.01),
    SamplingParams(max_tokens=160, temperature=1.5, seed=3, top_k=3, presence_penalty=1.0, logit_bias=((17, 5.0),)),
    SamplingParams(max_tokens=12, temperature=1.2, seed=4, frequency_penalty=1.0, repetition_penalty=1.3),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), {1: REFERENCE})


@pytest.fixture(scope="module")
def grammars(world: World) -> Grammars:
    return Grammars(world.tokenizer)


def said(world: World, *requests: GenerationRequest) -> dict[tuple[str, int], tuple[str, FinishReason, list[int]]]:
    """What each choice says, all requests in one batch: its text, why it ended, and its tokens."""
    engine, _ = world.engine(EngineConfig(num_slots=6, num_blocks=60, max_context_tokens=400), lambda: 0.0)
    for request in requests:
        engine.submit(request)
    texts: dict[tuple[str, int], tuple[str, FinishReason, list[int]]] = {}
    while engine.has_work():
        for event in engine.step():
            assert event.error is None, event.error
            assert len(event.logprobs) == (request_of(requests, event.request_id).sampling.logprobs is not None)
            key = event.request_id, event.choice
            text, _, ids = texts.get(key, ("", FinishReason.ABORT, []))
            texts[key] = text + event.text, event.finish_reason or FinishReason.ABORT, [*ids, *event.token_ids]
    return texts


def request_of(requests: tuple[GenerationRequest, ...], request_id: str) -> GenerationRequest:
    return next(each for each in requests if each.request_id == request_id)


def judge(schema: dict[str, Any], grammar: Grammar, text: str, reason: FinishReason, ids: list[int]) -> None:
    if reason is FinishReason.STOP:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        return
    assert reason is FinishReason.LENGTH
    # A beginning: the same tokens are taken again, and something may follow.
    constraint = grammar()
    for token_id in ids:
        constraint.advance(token_id)
    assert len(constraint.allowed()) and not constraint.is_complete


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, number=st.integers(0, 2**32))
def test_whatever_is_drawn_is_valid_or_the_beginning_of_what_is(
    world: World, grammars: Grammars, schema: dict[str, Any], number: int
) -> None:
    try:
        grammar = grammars.of_json(schema, "schema")
    except RequestInvalid as refusal:
        assert "cannot be kept: " in str(refusal) and refusal.param == "schema"
        return
    dice = random.Random(number)
    sampling = dice.choice(SAMPLINGS)
    free = GenerationRequest("free", PROMPT, SamplingParams(max_tokens=5, temperature=1.0, seed=number))
    bound = GenerationRequest("bound", PROMPT, sampling, num_choices=dice.choice([1, 3]), constraint=grammar)
    texts = said(world, bound, free)
    assert len(texts) == bound.num_choices + 1
    for (name, _), (text, reason, ids) in texts.items():
        if name == "bound":
            judge(schema, grammar, text, reason, ids)
    # Who has no grammar draws what it draws alone.
    assert texts["free", 0] == said(world, free)["free", 0]


def test_the_same_seed_draws_the_same_and_each_choice_something_else(world: World, grammars: Grammars) -> None:
    grammar = grammars.of_json(PERSON, "schema")
    request = GenerationRequest("r", PROMPT, SAMPLINGS[1], num_choices=3, constraint=grammar)
    texts = said(world, request)
    assert texts == said(world, request)
    assert len({text for text, _, _ in texts.values()}) == 3


def test_a_text_is_over_as_soon_as_nothing_may_follow(world: World, grammars: Grammars) -> None:
    grammar = grammars.of_json({"const": ["a"]}, "schema")
    ((text, reason, ids),) = said(world, GenerationRequest("r", PROMPT, SAMPLINGS[0], constraint=grammar)).values()
    assert json.loads(text) == ["a"] and reason is FinishReason.STOP
    assert not set(ids) & world.tokenizer.eos_ids


def test_the_last_token_that_may_come_can_complete_a_text(world: World, grammars: Grammars) -> None:
    grammar = grammars.of_json({"const": True}, "schema")
    request = GenerationRequest("r", PROMPT, SAMPLINGS[0], constraint=grammar)
    ((text, _, ids),) = said(world, request).values()
    exact = SamplingParams(max_tokens=len(ids), temperature=0.0)
    assert said(world, GenerationRequest("r", PROMPT, exact, constraint=grammar))["r", 0] == (
        text,
        FinishReason.STOP,
        ids,
    )
    less = SamplingParams(max_tokens=len(ids) - 1, temperature=0.0)
    cut, reason, _ = said(world, GenerationRequest("r", PROMPT, less, constraint=grammar))["r", 0]
    assert reason is FinishReason.LENGTH and text.startswith(cut) and cut != text


def test_a_stop_string_ends_it_where_the_client_wants(world: World, grammars: Grammars) -> None:
    grammar = grammars.of_json({"const": {"a": 1, "b": 2}}, "schema")
    sampling = SamplingParams(max_tokens=160, temperature=0.0, stop=('"b"', "zz"))
    text, reason, _ = said(world, GenerationRequest("r", PROMPT, sampling, constraint=grammar))["r", 0]
    assert reason is FinishReason.STOP and "".join(text.split()) == '{"a":1,'
    # Text that might have become a stop string is not lost at the end.
    sampling = SamplingParams(max_tokens=160, temperature=0.0, stop=("}}",))
    text, _, _ = said(world, GenerationRequest("r", PROMPT, sampling, constraint=grammar))["r", 0]
    assert json.loads(text) == {"a": 1, "b": 2}


def test_it_does_not_go_together_with_evidence(world: World, grammars: Grammars) -> None:
    engine, _ = world.engine(EngineConfig(num_slots=1, num_blocks=8, max_context_tokens=400), lambda: 0.0)
    grammar = grammars.of_json({}, "schema")
    with pytest.raises(InvalidRequest, match="evidence"):
        engine.submit(GenerationRequest("r", PROMPT, SAMPLINGS[0], evidence=("a",), constraint=grammar))


class GivesUp:
    """A constraint that fails after some tokens."""

    is_complete = False

    def __init__(self) -> None:
        self.num_taken = 0

    def allowed(self) -> Any:
        if self.num_taken == 2:
            raise ConstraintFailed("too much", "response_format")
        return np.array([7, 9])

    def advance(self, token_id: int) -> None:
        assert token_id in (7, 9)
        self.num_taken += 1


def test_a_constraint_that_fails_ends_its_own_request_alone(world: World) -> None:
    engine, _ = world.engine(EngineConfig(num_slots=2, num_blocks=20, max_context_tokens=400), lambda: 0.0)
    engine.submit(GenerationRequest("fails", PROMPT, SAMPLINGS[1], constraint=GivesUp))
    engine.submit(GenerationRequest("other", PROMPT, SamplingParams(max_tokens=8, temperature=0.0)))
    events = []
    while engine.has_work():
        events += engine.step()
    ends = {event.request_id: event for event in events if event.finish_reason is not None}
    assert isinstance(ends["fails"].error, ConstraintFailed) and ends["fails"].error.param == "response_format"
    assert ends["other"].finish_reason is FinishReason.LENGTH
    drawn = [token_id for event in events if event.request_id == "fails" for token_id in event.token_ids]
    assert len(drawn) == 2 and set(drawn) <= {7, 9}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "foo"}, "Invalid type: foo"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        # A schema's own options do not make it lenient.
        ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"oneOf": [{"type": "number"}, {"type": "string"}, {"type": "integer"}]}, "oneOf"),
        ({"type": "string", "format": "zork"}, "Unknown format: zork"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "a(?=b)"}, "look-around"),
        ({"$ref": "#/definitions/x"}, "does not exist"),
        ({"$ref": "http://example.com/schema"}, "example.com"),
        ({"$ref": "#"}, "no text can begin"),
        ({"type": "array", "items": {"type": "object", "minProperties": 2}}, "minProperties is 2"),
        ({"allOf": [{"type": "string"}, {"type": "number"}]}, "Unsatisfiable"),
        ({"enum": ["x" * 100_000]}, "may have 100000"),
        ({"minimum": float("nan")}, "expected value"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_with_the_reason(
    grammars: Grammars, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RequestInvalid) as refused:
        grammars.of_json(schema, "response_format.json_schema.schema")
    assert reason in str(refused.value) and "\n" not in str(refused.value)
    assert refused.value.param == "response_format.json_schema.schema"


def test_a_schema_that_is_nested_deeply_is_refused(grammars: Grammars) -> None:
    for depth in (300, 900, 100_000):
        schema: dict[str, Any] = {"type": "number"}
        for _ in range(depth):
            schema = {"type": "array", "items": schema}
        with pytest.raises(RequestInvalid, match=r"recursion limit|nested too deeply|may have"):
            grammars.of_json(schema, "schema")
        while "items" in schema:  # Python itself would take it apart recursively
            schema = schema.pop("items")


def test_white_space_does_not_go_on_for_ever(world: World, grammars: Grammars) -> None:
    blank = [each for each in range(world.tokenizer.vocab_size) if not world.tokenizer.token_bytes(each).strip()]
    blank = [each for each in blank if world.tokenizer.token_bytes(each)]
    constraint = grammars.of_json(PERSON, "schema")()
    text = b""
    while any(each in blank for each in constraint.allowed()) or not text:
        token_id = next((int(each) for each in constraint.allowed() if each in blank), int(constraint.allowed()[0]))
        constraint.advance(token_id)
        text += world.tokenizer.token_bytes(token_id)
        assert len(text) < 60
    assert text.startswith(b"{") and len(text) > 20


def test_the_embedded_model_has_a_vocabulary_that_grammars_can_use() -> None:
    from server.services import embedded_checkpoint

    tokenizer = Tokenizer(embedded_checkpoint())
    constraint = Grammars(tokenizer).of_json(PERSON, "schema")()
    first = {tokenizer.token_bytes(int(each)) for each in constraint.allowed()}
    assert b"{" in first and all(each.startswith(b"{") for each in first)
