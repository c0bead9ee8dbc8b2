"""Texts of a form: a grammar says which tokens may come next, by llguidance, for what writes JSON.

Made before the request reaches the engine, on a worker thread; what is left for each token takes some 70 microseconds
on the engine's thread.
"""

import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from model.errors import ConstraintFailed
from server.errors import RequestInvalid

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_CHARACTERS = 100_000
# Spaces between the parts of a text are free up to here: enough for deep indentation, and none goes on for ever.
WHITESPACE = r"[ \n\r\t]{1,40}"
# A schema may name options of its own; these count all the same. What is not understood is an error and not ignored.
OPTIONS: "JsonCompileOptions" = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": WHITESPACE,
    "coerce_one_of": False,
    "lenient": False,
}
# The engine's thread waits for the steps: at most some milliseconds each, and tens of megabytes for a text's automaton.
LIMITS = LLParserLimits(
    step_lexer_fuel=100_000,
    step_max_items=30_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# A control character that is a token of its own in every vocabulary with a token for each byte.
BORDER = "\x02"


class VocabularyTokenizer(Protocol):
    """What grammars need of ``model.tokenizer.Tokenizer``."""

    bos_id: int | None
    eos_ids: frozenset[int]

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text; empty for a control token."""

    def control_token(self, token_id: int) -> str | None:
        """The name of a control token; None for any other."""

    def encode_ids(self, text: str) -> list[int]:
        """Ids of a text."""


class Grammar:
    """A compiled form: called, it gives the constraint of one text. Safe to share between threads."""

    def __init__(self, matcher: LLMatcher, eos_ids: frozenset[int], param: str) -> None:
        self._matcher = matcher
        self._eos_ids = eos_ids
        self._param = param

    def __call__(self) -> "GrammarConstraint":
        """The constraint of a text of which nothing is written."""
        return GrammarConstraint(self._matcher.deep_copy(), self._eos_ids, self._param)


class GrammarConstraint:
    """A ``TokenConstraint`` by a grammar."""

    def __init__(self, matcher: LLMatcher, eos_ids: frozenset[int], param: str) -> None:
        self._matcher = matcher
        self._eos_ids = eos_ids
        self._param = param

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end of text may come."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.int64]:
        """Ids that may come next, ascending. Raises ``ConstraintFailed``."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        ids: NDArray[np.int64] = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        if not len(ids):
            raise ConstraintFailed(f"{self._param} leads to a place where no text can go on", self._param)
        return ids

    def advance(self, token_id: int) -> None:
        """Take an allowed token. Raises ``ConstraintFailed``."""
        if token_id not in self._eos_ids and not self._matcher.consume_token(token_id):
            self._check()

    def follows(self, token_ids: list[int]) -> bool:
        """Take tokens that may not be allowed; False if they are not."""
        return bool(self._matcher.consume_tokens(token_ids))

    def _check(self) -> None:
        if self._matcher.is_error():
            told = f"{self._param} is more than can be followed token by token: {_line(self._matcher.get_error())}"
            raise ConstraintFailed(told, self._param)


class Grammars:
    """Compiles schemas for one tokenizer. Blocking; safe to call from several threads."""

    def __init__(self, tokenizer: VocabularyTokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def of_json(self, schema: Mapping[str, Any], param: str) -> Grammar:
        """The grammar of the JSON texts that are valid under ``schema``, a subset of JSON Schema.

        Raises ``RequestInvalid`` blaming ``param``, with the reason, for any schema that cannot be kept to the letter.
        """
        try:
            spelled = json.dumps(schema)
        except RecursionError as error:
            raise RequestInvalid(f"{param} is nested too deeply; send a flatter schema", param) from error
        if len(spelled) > MAX_SCHEMA_CHARACTERS:
            limit = MAX_SCHEMA_CHARACTERS
            raise RequestInvalid(f"{param} has {len(spelled)} characters, but may have {limit}; shorten it", param)
        try:
            compiled = LLMatcher.grammar_from_json_schema(spelled, overrides=OPTIONS)
        except ValueError as error:
            raise RequestInvalid(f"{param} cannot be kept: {_line(str(error))}", param) from error
        # By now it is known to be flat enough to be looked through.
        if (least := _uncounted(schema)) is not None:
            raise RequestInvalid(
                f"{param} cannot be kept: minProperties is {least}, and keys that are not listed may come twice; list "
                "them as required",
                param,
            )
        return self._compiled(compiled, param)

    def of_lark(self, rules: str, param: str) -> Grammar:
        """The grammar of what the server itself has put together, in llguidance's variant of Lark. Raises as
        ``of_json``."""
        return self._compiled(LLMatcher.grammar_from_lark(rules), param)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text; empty for a control token."""
        return self._tokenizer.token_bytes(token_id)

    def follows(self, constraint: "GrammarConstraint", text: bytes) -> bool:
        """Take ``text``, whatever its tokens were; False, and the constraint is of no use, if it is not allowed."""
        return constraint.follows(self._loaded().greedy_tokenize(text.decode()))

    def _compiled(self, compiled: str, param: str) -> Grammar:
        matcher = LLMatcher(self._loaded(), compiled, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise RequestInvalid(f"{param} cannot be kept: {_line(matcher.get_error())}", param)
        grammar = Grammar(matcher, self._tokenizer.eos_ids, param)
        try:
            grammar().allowed()
        except ConstraintFailed as error:  # a schema that is never done with itself
            raise RequestInvalid(f"{param} cannot be kept: no text can begin", param) from error
        return grammar

    def _loaded(self) -> LLTokenizer:
        # Takes 40 ms for 16,000 tokens, which only they wait for who ask for a form.
        with self._lock:
            if self._vocabulary is None:
                view = _Vocabulary(self._tokenizer)
                self._vocabulary = view.tokenizer = LLTokenizer(view, eos_token=sorted(self._tokenizer.eos_ids))
            return self._vocabulary


class _Vocabulary(TokenizerWrapper):
    """The tokenizer in the shape that llguidance reads."""

    is_tokenizer_wrapper = True
    tokenizer: LLTokenizer

    def __init__(self, tokenizer: VocabularyTokenizer) -> None:
        self._own = tokenizer
        ids = range(tokenizer.vocab_size)
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = tokenizer.bos_id
        # No text has the byte 0xFF, so no control token is ever part of one.
        self.tokens = [
            tokenizer.token_bytes(each) or b"\xff" + (tokenizer.control_token(each) or str(each)).encode()
            for each in ids
        ]
        self.special_token_ids = [each for each in ids if not tokenizer.token_bytes(each)]

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text that stands within another, without the space that many tokenizers begin a text with."""
        text = text if isinstance(text, str) else text.decode()
        ids = self._own.encode_ids(BORDER + text)
        for place, token_id in enumerate(ids[:2], start=1):
            if self._own.token_bytes(token_id).lstrip(b" ") == BORDER.encode():
                return ids[place:]
        return list(self.tokenizer.greedy_tokenize(text))


def _uncounted(schema: object) -> float | None:
    """A ``minProperties`` in the schema that a key which comes twice could feign; None where there is none."""
    if isinstance(schema, list):
        return next((found for each in schema if (found := _uncounted(each)) is not None), None)
    if not isinstance(schema, Mapping):
        return None
    least, required = schema.get("minProperties"), schema.get("required")
    num_required = len({*map(str, required)}) if isinstance(required, list) else 0
    if isinstance(least, int | float) and least > max(1, num_required):
        return least
    return _uncounted([each for key, each in schema.items() if key not in ("const", "enum")])


def _line(reason: str) -> str:
    """The reason on one line."""
    return " ".join(reason.split())
