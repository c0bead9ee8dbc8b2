"""Functions that a reply may call: whether this model can be told of them, and what it may then write."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from model.engine.constraint import ConstraintMaker
from server.answers.inquiry import Inquiry
from server.answers.prompt import ChatTokenizer
from server.chat.fields import FieldRefused
from server.chat.grammar import Grammars
from server.chat.schema import ChatRequest
from server.chat.tool_calls import OPENING
from server.chat.tool_grammar import CallsOrText, call_grammar
from server.chat.tool_schema import FunctionSpec
from server.errors import RequestInvalid


@dataclass(frozen=True, slots=True)
class Functions:
    """The functions of a request, each with its path there; whether they may or must be called; which of them, None for
    all; and whether ``several`` in one reply."""

    specs: tuple[tuple[str, FunctionSpec], ...]
    choice: Literal["none", "auto", "required"] = "auto"
    allowed: tuple[str, ...] | None = None
    several: bool = True


def with_tools(inquiry: Inquiry, body: ChatRequest, tokenizer: ChatTokenizer, grammars: Grammars) -> Inquiry:
    """As ``with_functions``, with those of a chat."""
    if (reason := untaught(tokenizer)) is not None:
        if body.tools:
            raise FieldRefused("tools", reason)
        for place, message in enumerate(body.messages):
            if message.role == "tool":
                raise RequestInvalid(f"{reason}, so no message is one of a tool", f"messages.{place}.role")
            for key in ("tool_calls", "tool_call_id"):
                if getattr(message, key):
                    raise FieldRefused(f"messages.{place}.{key}", reason)
    choice = body.tool_choice.type if body.tool_choice is not None else "auto"
    if not body.tools:
        if choice in ("required", "function"):
            raise RequestInvalid("tool_choice wants a call, but there are no tools", "tool_choice")
        return inquiry
    wanted = body.tool_choice.function if body.tool_choice is not None else None
    if wanted is not None and all(tool.function.name != wanted.name for tool in body.tools):
        raise RequestInvalid(f"tool_choice names {wanted.name!r}, which is not in tools", "tool_choice.function.name")
    functions = Functions(
        tuple((f"tools.{place}.function", tool.function) for place, tool in enumerate(body.tools)),
        "required" if choice == "function" else choice,
        None if wanted is None else (wanted.name,),
        body.parallel_tool_calls is not False,
    )
    return with_functions(inquiry, functions, grammars, "response_format")


def with_functions(inquiry: Inquiry, functions: Functions, grammars: Grammars, form_field: str) -> Inquiry:
    """The inquiry with the functions that the model is told of, and the grammar of their calls. Blocking.

    ``form_field`` is what asks for a form of the text. Raises ``RequestInvalid`` for what does not go together, and for
    a schema that makes no sense.
    """
    if not functions.specs:
        return inquiry
    if inquiry.documents:
        raise RequestInvalid("tools cannot be used with documents: an answer from them calls nothing", "tools")
    if inquiry.constraint is not None:
        raise RequestInvalid(f"tools cannot be used with {form_field}: a call has a form of its own", form_field)
    names = [function.name for _, function in functions.specs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestInvalid(f"tools has two functions of the name {twice!r}", "tools")
    if functions.choice == "none":
        return inquiry
    calls = call_grammar(grammars, _allowed(functions), functions.several)
    constraint: ConstraintMaker = calls
    if functions.choice == "auto":
        constraint = lambda: CallsOrText(calls, grammars)  # noqa: E731
    told = ({"type": "function", "function": spec.model_dump(exclude_none=True)} for _, spec in functions.specs)
    return replace(inquiry, constraint=constraint, tools=tuple(told))


def untaught(tokenizer: ChatTokenizer) -> str | None:
    """Why this model cannot be told of functions; None where it can."""
    source = tokenizer.tool_template
    if source is None:
        return "this model's chat template has no tools"
    return None if OPENING in source else f"this model's chat template does not write calls as {OPENING}"


def _allowed(functions: Functions) -> Sequence[tuple[str, FunctionSpec]]:
    if functions.allowed is None:
        return functions.specs
    return [each for each in functions.specs if each[1].name in functions.allowed]
