"""What a model may write that has functions to call: text, calls whose arguments fit, or calls alone."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.chat.grammar import WHITESPACE, Grammar, GrammarConstraint, Grammars
from server.chat.tool_calls import CLOSING, OPENING
from server.chat.tool_schema import FunctionSpec
from server.errors import RequestInvalid


def call_grammar(grammars: Grammars, functions: Sequence[tuple[str, FunctionSpec]], several: bool) -> Grammar:
    """The grammar of one call of any of ``functions``, given with their paths, or of ``several``.

    Raises ``RequestInvalid`` blaming the ``parameters`` that cannot be kept.
    """
    rules, names = [], []
    for number, (path, function) in enumerate(functions):
        schema = function.parameters or {"type": "object"}
        if schema.get("type") != "object":
            raise RequestInvalid(f"{path}.parameters should have the type 'object'", f"{path}.parameters")
        grammars.of_json(schema, f"{path}.parameters")  # refuses alone what it would refuse among the others
        spelled = json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITESPACE, "lenient": False}})
        names.append(f"call_{number}")
        rules.append(
            f'call_{number}: "{{" WS? "\\"name\\"" WS? ":" WS? "\\"{function.name}\\"" WS? "," WS? '
            f'"\\"arguments\\"" WS? ":" WS? arguments_{number} WS? "}}"\n'
            f"arguments_{number}: %json {spelled}"
        )
    start = "start: call (WS? call)*" if several else "start: call"
    call = f'call: "{OPENING}" WS? ({" | ".join(names)}) WS? "{CLOSING}"'
    return grammars.of_lark("\n".join([start, call, *rules, f"WS: /{WHITESPACE}/", ""]), "tools")


class CallsOrText:
    """A ``TokenConstraint`` that leaves a text free until it calls a function, and then keeps it to the grammar."""

    def __init__(self, calls: Grammar, grammars: Grammars) -> None:
        self._calls = calls
        self._grammars = grammars
        self._tail = b""
        self._bound: GrammarConstraint | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end of text may come."""
        return self._bound is not None and self._bound.is_complete

    def allowed(self) -> NDArray[np.int64] | None:
        """All before a call. Raises ``ConstraintFailed``."""
        return None if self._bound is None else self._bound.allowed()

    def advance(self, token_id: int) -> None:
        """Take an allowed token. Raises ``ConstraintFailed``."""
        if self._bound is not None:
            self._bound.advance(token_id)
            return
        self._tail += self._grammars.token_bytes(token_id)
        _, opening, rest = self._tail.partition(OPENING.encode())
        if opening:
            bound = self._calls()
            # What stands after the mark in its last token may be no beginning of a call: then it stays text.
            if self._grammars.follows(bound, OPENING.encode() + rest):
                self._bound = bound
            self._tail = rest
        self._tail = self._tail[-len(OPENING) :]
